"""XSum, documents with summaries of one sentence, from files or from Hugging Face ``datasets``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vlkd_pl.batch import SummaryBatch
from vlkd_pl.data.infilling import Ids
from vlkd_pl.data.sampler import OrderedDataset
from vlkd_pl.data.xsum_files import Document, DocumentBatches, EncodedDocument, iter_documents, token_batches
from vlkd_pl.datamodules.base import BaseDataModule
from vlkd_pl.models.bart import load_bart_tokenizer

_CHUNK_SIZE = 1000


class XSUMDataModule(BaseDataModule):
    r"""XSum (Narayan et al., 2018): documents of the BBC, each with a summary of one sentence.

    Documents without text or summary are skipped, and long ones are truncated; both are counted and reported when a
    split is read.

    Args:
        model: Model folder, or name or folder of a BART, for the tokenizer; on the command line it is the model's.
        source: Folder or Hugging Face name of the documents; see ``iter_documents``.
        revision: Revision of a dataset on Hugging Face; ``refs/convert/parquet`` for a dataset whose main revision is a
            loading script, which ``datasets`` does not run since 4.0.
        max_length: Largest number of tokens of a document or summary; longer ones are truncated.
        max_tokens: Largest number of tokens of the documents in a training batch of one rank, with padding.
        eval_batch_size: Number of documents in an evaluation batch of one rank; they are of similar length.
        num_eval_samples: Number of documents to evaluate, the first of the split; all if None.
        num_workers: Number of worker processes of each rank.
        seed: Seed of the training batches and of their order.

    Raises:
        MisconfigurationException: If a batch of ``max_tokens`` is too small for one document.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from vlkd_pl.sample import BART_FOLDER
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "test.source").write_text("A fish swims in a lake. It is red.\n")
    ...     _ = Path(folder, "test.target").write_text("A red fish swims.\n")
    ...     data = XSUMDataModule(BART_FOLDER, folder, num_workers=0)
    ...     data.setup("test")
    >>> data.documents["test"][0].document.summary
    'A red fish swims.'
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
        super().__init__(num_workers, seed)
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
        self.documents: dict[str, list[EncodedDocument]] = {}

    def setup(self, stage: str) -> None:
        """Read the splits of a stage; prediction reads ``test`` and needs no summaries.

        Raises:
            FileNotFoundError: If the documents are missing.
            MisconfigurationException: If a file is invalid, or a split holds no document.
        """
        for split in {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",)):
            if split not in self.documents or stage == "predict":
                self.documents[split] = self._read(split, summaries=stage != "predict")

    def train_dataloader(self) -> DataLoader[SummaryBatch]:
        """Load batches of similar token counts, shuffled in each epoch; a resumed run continues within its epoch."""
        documents = self.documents["train"]
        lengths = [max(len(document.ids), len(document.summary_ids)) for document in documents]
        batches = token_batches(lengths, self.max_tokens, self.seed)
        dataset = OrderedDataset(DocumentBatches(documents, batches, self.tokenizer.pad_token_id))
        return self.loader(dataset, None, order=self.training_order(len(batches), 1))

    def val_dataloader(self) -> DataLoader[SummaryBatch]:
        """Load the documents of ``val``, the longest first."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[SummaryBatch]:
        """Load the documents of ``test``, the longest first."""
        return self._evaluation_loader("test")

    predict_dataloader = test_dataloader

    def _read(self, split: str, summaries: bool) -> list[EncodedDocument]:
        counts: Counter[str] = Counter()
        documents = _with_text(iter_documents(self.source, split, self.revision, summaries), summaries, counts)
        if split != "train":
            documents = islice(documents, self.num_eval_samples)
        encoded = list(_encoded(documents, self.tokenizer, self.max_length, counts))
        losses = "".join(f"; {reason}: {count}" for reason, count in counts.items())
        if not encoded:
            raise MisconfigurationException(f"there is no document in the split {split} of {self.source}{losses}")
        rank_zero_info(f"XSum, {split}: {len(encoded)} documents{losses}")
        return encoded

    def _evaluation_loader(self, split: str) -> DataLoader[SummaryBatch]:
        documents = self.documents[split]
        order = sorted(range(len(documents)), key=lambda index: -len(documents[index].ids))
        batches = [order[first : first + self.eval_batch_size] for first in range(0, len(order), self.eval_batch_size)]
        return self.loader(DocumentBatches(documents, batches, self.tokenizer.pad_token_id), None)


def _with_text(documents: Iterable[Document], summaries: bool, counts: Counter[str]) -> Iterator[Document]:
    for document in documents:
        if not document.text:
            counts["skipped without text"] += 1
        elif summaries and not document.summary:
            counts["skipped without summary"] += 1
        else:
            yield document


def _encoded(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerBase, max_length: int, counts: Counter[str]
) -> Iterator[EncodedDocument]:
    def token_ids(texts: list[str], what: str) -> Iterator[Ids]:
        for ids in tokenizer(texts, verbose=False)["input_ids"]:
            if len(ids) > max_length:
                counts[f"{what} truncated to {max_length} tokens"] += 1
                ids = [*ids[: max_length - 1], ids[-1]]
            yield np.array(ids, dtype=np.int64)

    while chunk := list(islice(documents, _CHUNK_SIZE)):
        texts = token_ids([document.text for document in chunk], "documents")
        summaries = token_ids([document.summary for document in chunk], "summaries")
        for document, ids, summary_ids in zip(chunk, texts, summaries, strict=True):
            yield EncodedDocument(document._replace(text=""), ids, summary_ids)
