"""Documents with summaries of a sentence: XSum (Narayan et al., 2018), from files or Hugging Face ``datasets``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from vlkd_pl.batch import SummaryBatch
from vlkd_pl.data.base import load_bart_tokenizer, one_thread
from vlkd_pl.data.infilling import Ids, padded
from vlkd_pl.data.order import EpochOrder, OrderedDataModule, OrderedDataset
from vlkd_pl.errors import needs_extra
from vlkd_pl.reading import Entries, iter_lines, parse_json

_HUB_NAMES = {"val": "validation"}
_CHUNK_SIZE = 1000


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


class XSUMDataModule(OrderedDataModule):
    """XSum: documents of the BBC, each with a sentence that says what it is about.

    Documents without text or without summary are left out, and longer ones cut; both are counted, and reported when a
    split is read.

    Args:
        model: The model folder or BART whose tokenizer is used; see ``TextModel.load``.
        source: Where the documents are; see ``iter_documents``.
        revision: Of a data set on Hugging Face: ``refs/convert/parquet`` where its main one is a loading script, which
            ``datasets`` runs no more since 4.0.
        max_length: Most tokens of a document or summary: BART's positions.
        max_tokens: Most tokens of the documents in a training batch of one process, with padding.
        eval_batch_size: Documents in an evaluation batch of one process; all are of about the same length.
        num_eval_samples: Documents of an evaluation, the first of the split; all by default.
        num_workers: Worker processes of one process.
        seed: Decides the batches of training and their order.

    Raises:
        MisconfigurationException: A batch of ``max_tokens`` has no room for one document.
    """

    def __init__(
        self,
        model: str,
        source: str = "EdinburghNLP/xsum",
        revision: str | None = None,
        max_length: int = 1024,
        max_tokens: int = 2048,
        eval_batch_size: int = 32,
        num_eval_samples: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if max_tokens < max_length:
            raise MisconfigurationException(
                f"data.max_tokens is {max_tokens}, less than the {max_length} tokens of one document: raise it, or "
                "lower data.max_length"
            )
        self.tokenizer = load_bart_tokenizer(model)
        self.source = source
        self.revision = revision
        self.max_length = max_length
        self.max_tokens = max_tokens
        self.eval_batch_size = eval_batch_size
        self.num_eval_samples = num_eval_samples
        self.num_workers = num_workers
        self.documents: dict[str, list[EncodedDocument]] = {}

    def setup(self, stage: str) -> None:
        """Reads the splits of a stage: ``test`` for prediction too, where no summary is needed.

        Raises:
            FileNotFoundError: The documents are not there.
            MisconfigurationException: They are of another format, or there is none in a split.
        """
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if split not in self.documents or stage == "predict":
                self.documents[split] = self._read(split, summaries=stage != "predict")

    def train_dataloader(self) -> DataLoader[SummaryBatch]:
        """Batches of about as many tokens, shuffled in each epoch; a resumed run goes on where it was."""
        documents = self.documents["train"]
        lengths = [max(len(each.ids), len(each.summary_ids)) for each in documents]
        batches = token_batches(lengths, self.max_tokens, self.seed)
        return self._loader(documents, batches, sampler=self.training_order(len(batches), 1))

    def val_dataloader(self) -> DataLoader[SummaryBatch]:
        """All documents of ``val``, the longest first."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[SummaryBatch]:
        """All documents of ``test``, the longest first."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[SummaryBatch]:
        """All documents of ``test``, the longest first."""
        return self._evaluation_loader("test")

    def _read(self, split: str, summaries: bool) -> list[EncodedDocument]:
        counts: Counter[str] = Counter()
        read = iter_documents(self.source, split, self.revision, summaries)
        kept = _with_text(read, summaries, counts)
        if split != "train":
            kept = islice(kept, self.num_eval_samples)
        encoded = list(_encoded(kept, self.tokenizer, self.max_length, counts))
        told = "".join(f"; {what}: {count}" for what, count in counts.items())
        if not encoded:
            raise MisconfigurationException(f"there is no document in the split {split} of {self.source}{told}")
        rank_zero_info(f"XSum, {split}: {len(encoded)} documents{told}")
        return encoded

    def _evaluation_loader(self, split: str) -> DataLoader[SummaryBatch]:
        documents = self.documents[split]
        order = sorted(range(len(documents)), key=lambda index: -len(documents[index].ids))
        batches = [order[first : first + self.eval_batch_size] for first in range(0, len(order), self.eval_batch_size)]
        return self._loader(documents, batches)

    def _loader(
        self, documents: list[EncodedDocument], batches: list[list[int]], sampler: EpochOrder | None = None
    ) -> DataLoader[SummaryBatch]:
        prepared = DocumentBatches(documents, batches, self.tokenizer.pad_token_id)
        return DataLoader[Any](
            prepared if sampler is None else OrderedDataset(prepared),
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=one_thread,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or else evaluation would shift the random numbers of training
        )


def _with_text(documents: Iterable[Document], summaries: bool, counts: Counter[str]) -> Iterator[Document]:
    for document in documents:
        if not document.text:
            counts["left out without text"] += 1
        elif summaries and not document.summary:
            counts["left out without summary"] += 1
        else:
            yield document


def _encoded(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerBase, max_length: int, counts: Counter[str]
) -> Iterator[EncodedDocument]:
    def token_ids(texts: list[str], what: str) -> Iterator[Ids]:
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            if len(ids) > max_length:
                counts[f"{what} cut to {max_length} tokens"] += 1
                ids = [*ids[: max_length - 1], ids[-1]]
            yield np.array(ids, dtype=np.int64)

    while chunk := list(islice(documents, _CHUNK_SIZE)):
        texts = token_ids([document.text for document in chunk], "documents")
        summaries = token_ids([document.summary for document in chunk], "summaries")
        for document, ids, summary_ids in zip(chunk, texts, summaries, strict=True):
            yield EncodedDocument(document._replace(text=""), ids, summary_ids)


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
