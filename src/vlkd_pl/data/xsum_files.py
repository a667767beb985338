"""XSum's documents and summaries from files or Hugging Face datasets, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import Dataset

from vlkd_pl.batch import SummaryBatch
from vlkd_pl.data.infilling import Ids, padded
from vlkd_pl.errors import needs_extra
from vlkd_pl.text_files import Entries, iter_lines, parse_json

_HUB_NAMES = {"val": "validation"}


class Document(NamedTuple):
    """A document.

    Attributes:
        number: Its place in its split, from 0.
        text: In one line.
        summary: In one line; empty where it is not known.
    """

    number: int
    text: str
    summary: str


class EncodedDocument(NamedTuple):
    """A document as BART reads it.

    Attributes:
        document: With its text left out.
        ids: Token ids of the text (L,).
        summary_ids: Token ids of the summary (M,).
    """

    document: Document
    ids: Ids
    summary_ids: Ids


def iter_documents(source: str, split: str, revision: str | None = None, summaries: bool = True) -> Iterator[Document]:
    """Goes through the documents of a split.

    Args:
        source: One of

            - a folder with ``{split}.source`` and ``{split}.target``, a document and a summary a line, as fairseq has
              them;
            - a folder with ``{split}.jsonl``, an object with ``document`` and ``summary`` a line;
            - a folder that ``DatasetDict.save_to_disk`` wrote, with the columns ``document`` and ``summary``;
            - the name of such a data set on Hugging Face: ``EdinburghNLP/xsum``.
        split: ``train``, ``val`` or ``test``; Hugging Face calls ``val`` ``validation``, which files may too.
        revision: Of a data set on Hugging Face.
        summaries: Whether each document must have a summary; else an empty one stands for those that have none.

    Yields:
        The documents in their order, also empty ones; white space of any kind is one space, so that each is one line.

    Raises:
        FileNotFoundError: There is no such source or split.
        MisconfigurationException: A file is of another format, or a column is missing.
        MissingPackageError: ``datasets`` is not installed, and the source is none of text files.
    """
    folder = Path(source)
    if not folder.is_dir():
        rows = _hub_rows(source, split, revision)
    elif (folder / "dataset_dict.json").is_file():
        rows = _saved_rows(source, split)
    else:
        rows = _file_rows(folder, split, summaries)
    for number, row in enumerate(rows):
        place = f"{source}, split {split}: number {number}"
        entry = Entries([row], place, is_numbered=False)
        if ("document" not in row) or (summaries and "summary" not in row):
            raise MisconfigurationException(
                f"{place} has {', '.join(row) or 'nothing'}: it needs a document" + " and a summary" * summaries
            )
        texts = (entry.texts(key, None)[0] for key in ("document", "summary"))
        text, summary = (" ".join((text or "").split()) for text in texts)
        yield Document(number, text, summary)


def token_batches(lengths: Sequence[int], max_tokens: int, seed: int) -> list[list[int]]:
    """Puts documents of about the same length together, as fairseq does.

    Args:
        lengths: Tokens of each document.
        max_tokens: Most tokens in a batch, with padding.
        seed: Decides the order of documents of the same length.

    Returns:
        The numbers of each batch's documents; the batches from short documents to long ones.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    batches: list[list[int]] = []
    for index in order.tolist():
        if not batches or (len(batches[-1]) + 1) * lengths[index] > max_tokens:  # the longest of the batch so far
            batches.append([])
        batches[-1].append(index)
    return batches


class DocumentBatches(Dataset[SummaryBatch]):
    """A data set of batches that are put together beforehand.

    Args:
        documents: All of them.
        batches: The numbers of each batch's documents.
        pad_id: BART's padding token.
    """

    def __init__(self, documents: Sequence[EncodedDocument], batches: Sequence[Sequence[int]], pad_id: int) -> None:
        self.documents = documents
        self.batches = batches
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> SummaryBatch:
        """A batch, padded to its longest document and summary."""
        documents = [self.documents[number] for number in self.batches[index]]
        document_ids, document_mask = padded([each.ids for each in documents], self.pad_id)
        labels, _ = padded([each.summary_ids for each in documents], -100)
        return {
            "document_ids": document_ids,
            "document_mask": document_mask,
            "labels": labels,
            "samples": [each.document for each in documents],
            "unreadable": [],
        }


def _file_rows(folder: Path, split: str, summaries: bool) -> Iterator[dict[str, Any]]:
    """The rows of the files of a folder."""
    for name in (split, _HUB_NAMES.get(split, split)):
        if (folder / f"{name}.jsonl").is_file():
            yield from _json_rows(folder / f"{name}.jsonl")
            return
        source, target = (folder / f"{name}.{end}" for end in ("source", "target"))
        if source.is_file():
            if not summaries and not target.is_file():
                yield from ({"document": line} for line in iter_lines(source))
                return
            documents, told = list(iter_lines(source)), list(iter_lines(target))
            if len(documents) != len(told):
                raise MisconfigurationException(
                    f"{source} has {len(documents)} lines and {target} has {len(told)}: give one summary for each "
                    "document, each on a line"
                )
            yield from ({"document": text, "summary": line} for text, line in zip(documents, told, strict=True))
            return
    raise FileNotFoundError(
        f"there is no {split}.source and no {split}.jsonl in {folder}: give a folder with the documents as data.source"
    )


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(iter_lines(path), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number} is not JSON")
        complaint = f"{path}, line {number} is not an object with texts as document and summary"
        entry = Entries([row], complaint, is_numbered=False)
        for key in ("document", "summary"):
            entry.texts(key, "")
        yield row


def _saved_rows(folder: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a folder that ``datasets`` wrote."""
    saved = _datasets().load_from_disk(folder)
    name = split if split in saved else _HUB_NAMES.get(split, split)
    if name not in saved:
        raise FileNotFoundError(f"there is no split {name} in {folder}, which has {', '.join(saved)}")
    yield from saved[name]


def _hub_rows(name: str, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a data set on Hugging Face."""
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(name, split=_HUB_NAMES.get(split, split), revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder and no data set {name}: give a folder as data.source, or a name on Hugging Face where "
            f"there is a network, with data.revision refs/convert/parquet where it is a script ({first_line})"
        ) from error
    yield from rows


def _datasets() -> Any:
    with needs_extra("datasets"):
        import datasets
    return datasets
