"""Documents with summaries of a sentence: XSum (Narayan et al., 2018), from files or Hugging Face ``datasets``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vlkd_pl.batch import SummaryBatch
from vlkd_pl.data.infilling import Ids
from vlkd_pl.data.sampler import EpochOrder, OrderedDataset
from vlkd_pl.data.workers import worker_init_fn
from vlkd_pl.data.xsum_files import Document, DocumentBatches, EncodedDocument, iter_documents, token_batches
from vlkd_pl.datamodules.order import OrderedDataModule
from vlkd_pl.models.bart import load_bart_tokenizer

_CHUNK_SIZE = 1000


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
            worker_init_fn=worker_init_fn,
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
