"""Documents with summaries from files or Hugging Face ``datasets``, and batches of them."""

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
    """A document with its summary.

    Attributes:
        number: Index in the split, from 0.
        text: Text of the document in one line.
        summary: Summary in one line; empty if it is missing.
    """

    number: int
    text: str
    summary: str


class EncodedDocument(NamedTuple):
    """A document with its token ids.

    Attributes:
        document: The document, with an empty text to save memory.
        ids: BART's token ids (L,) of the text.
        summary_ids: BART's token ids (M,) of the summary.
    """

    document: Document
    ids: Ids
    summary_ids: Ids


def iter_documents(source: str, split: str, revision: str | None = None, summaries: bool = True) -> Iterator[Document]:
    """Iterate over the documents of a split.

    Args:
        source: Source of the documents, one of

            - a folder with ``{split}.source`` and ``{split}.target``, with one document or summary per line, the layout
              of fairseq;
            - a folder with ``{split}.jsonl``, with one object of ``document`` and ``summary`` per line;
            - a folder that ``DatasetDict.save_to_disk`` wrote, with the columns ``document`` and ``summary``;
            - the name of such a dataset on Hugging Face, as ``EdinburghNLP/xsum``.
        split: ``train``, ``val`` or ``test``; a file or dataset may call ``val`` ``validation``.
        revision: Revision of a dataset on Hugging Face; its main one if None.
        summaries: Whether each document must have a summary; otherwise a missing summary is empty.

    Yields:
        The documents in their order, empty ones included; white space is replaced by single spaces.

    Raises:
        FileNotFoundError: If the source or the split does not exist.
        MisconfigurationException: If a file is invalid, or a column is missing.
        MissingPackageError: If ``datasets`` is not installed, but needed for the source.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "test.jsonl").write_text('{"document": "A fish swims.", "summary": "A fish."}')
    ...     list(iter_documents(folder, "test"))
    [Document(number=0, text='A fish swims.', summary='A fish.')]
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
    """Batch documents of similar length, as fairseq does.

    Args:
        lengths: Number of tokens of each document.
        max_tokens: Largest number of tokens in a batch, with padding.
        seed: Seed of the order of documents of the same length.

    Returns:
        The indices of the documents of each batch; the batches from short documents to long ones.

    >>> token_batches([5, 2, 9, 2], max_tokens=10, seed=0)
    [[1, 3], [0], [2]]
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
    """A dataset of prepared batches.

    Args:
        documents: All documents.
        batches: Indices of the documents of each batch.
        pad_id: Token id of BART's padding.
    """

    def __init__(self, documents: Sequence[EncodedDocument], batches: Sequence[Sequence[int]], pad_id: int) -> None:
        self.documents = documents
        self.batches = batches
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> SummaryBatch:
        """Return a batch, padded to its longest document and summary."""
        documents = [self.documents[number] for number in self.batches[index]]
        document_ids, document_mask = padded([document.ids for document in documents], self.pad_id)
        labels, _ = padded([document.summary_ids for document in documents], -100)
        return {
            "document_ids": document_ids,
            "document_mask": document_mask,
            "labels": labels,
            "samples": [document.document for document in documents],
            "unreadable": [],
        }


def _file_rows(folder: Path, split: str, summaries: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of the files of a folder."""
    for name in (split, _HUB_NAMES.get(split, split)):
        if (folder / f"{name}.jsonl").is_file():
            yield from _json_rows(folder / f"{name}.jsonl")
            return
        source, target = (folder / f"{name}.{end}" for end in ("source", "target"))
        if source.is_file():
            if not summaries and not target.is_file():
                yield from ({"document": line} for line in iter_lines(source))
                return
            documents, targets = list(iter_lines(source)), list(iter_lines(target))
            if len(documents) != len(targets):
                raise MisconfigurationException(
                    f"{source} has {len(documents)} lines and {target} has {len(targets)}: give one summary for each "
                    "document, one per line"
                )
            yield from ({"document": text, "summary": line} for text, line in zip(documents, targets, strict=True))
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
    """Yield the rows of a folder that ``datasets`` wrote."""
    saved = _datasets().load_from_disk(folder)
    name = split if split in saved else _HUB_NAMES.get(split, split)
    if name not in saved:
        raise FileNotFoundError(f"there is no split {name} in {folder}, which has {', '.join(saved)}")
    yield from saved[name]


def _hub_rows(name: str, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset on Hugging Face."""
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(name, split=_HUB_NAMES.get(split, split), revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise FileNotFoundError(
            f"there is no folder and no dataset {name}: give a folder as data.source, or a name on Hugging Face where "
            f"there is a network, with data.revision refs/convert/parquet where it is a script ({first_line})"
        ) from error
    yield from rows


def _datasets() -> Any:
    with needs_extra("datasets"):
        import datasets
    return datasets
