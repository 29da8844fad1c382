"""Preference data as a Lightning data module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from lit_align.data.collate import Collate
from lit_align.data.errors import check_range
from lit_align.data.formats import FormatName
from lit_align.data.length_table import show, warnings
from lit_align.data.lengths import LengthReport, split_report
from lit_align.data.loader import ResumableLoader, evaluation_loader
from lit_align.data.prepare import BadRows, OnBadRow, Split, prepare
from lit_align.data.prompts import QUALITY_PROMPT
from lit_align.data.sampler import BucketedBatches, SequentialBatches, Share
from lit_align.data.tokenize import Tokenize
from lit_align.data.tokenizer import Encoder, load_tokenizer
from lit_align.data.truncate import Cut, Drop
from lit_align.types import PairBatch, PreferencePair

STAGES: Mapping[str, Sequence[str]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}
TRUNCATIONS = {"cut": Cut, "drop": Drop}


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt to sample responses for: its ids as in training, and its text."""

    ids: Sequence[int]
    text: str


class PreferenceData(LightningDataModule):
    """Preference pairs from files or the hub, checked and tokenized before any model exists.

    Args:
        train: source of the training pairs: a ``.jsonl``, ``.json`` or ``.parquet`` file, ``testbed:train``, or
            ``owner/name[@revision][:split]`` on the hub.
        validation: source of the validation pairs; None for none.
        test: source for ``test``.
        predict: source for ``predict``; its other columns are written beside the predictions.
        tokenizer: local folder, hub name or ``testbed:policy``; the command line takes the policy's if None.
        revision: branch, tag or commit hash of a hub tokenizer.
        format: how rows spell their prompt and responses; ``auto`` decides by the columns of a file's first row.
        batch_size: pairs per process and step.
        eval_batch_size: pairs per process and batch of evaluation; None for ``batch_size``.
        max_length: tokens of prompt and response together.
        max_response_length: tokens of a response; None shares the room between prompt and response.
        truncation: ``cut`` what is too long, or ``drop`` the pair.
        on_bad_row: stop with the first rows that cannot be used, or go on without them.
        max_dropped: the share of a source's rows that may be left out.
        quality_prompt: the text p that self-refinement puts in front of the query.
        prompted: build the batches under p ⊕ x as well.
        num_workers: processes per loader.
        seed: of the order of the training pairs; the command line takes the run's if None.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(  # noqa: PLR0913 (the signature is the configuration)
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        format: FormatName = "auto",
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        max_response_length: int | None = None,
        truncation: Literal["cut", "drop"] = "cut",
        on_bad_row: OnBadRow = "error",
        max_dropped: float = 0.01,
        quality_prompt: str = QUALITY_PROMPT,
        prompted: bool = False,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_range("data.batch_size", batch_size, 1)
        check_range("data.eval_batch_size", eval_batch_size, 1)
        check_range("data.max_length", max_length, 4)
        check_range("data.max_response_length", max_response_length, 1, max_length - 1)
        check_range("data.max_dropped", max_dropped, 0, 1)
        check_range("data.num_workers", num_workers, 0)
        self.sources = {"train": train, "validation": validation, "test": test, "predict": predict}
        self.tokenizer_name = tokenizer
        self.revision = revision
        self.format = format
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.truncation = TRUNCATIONS[truncation](max_length, max_response_length)
        self.bad_rows = BadRows(on_bad_row, max_dropped)
        self.quality_prompt = quality_prompt
        self.prompted = prompted
        self.num_workers = num_workers
        self.seed = seed or 0
        self.splits: dict[str, Split] = {}
        self.lengths: dict[str, LengthReport] = {}
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Read, check and tokenize the splits of a stage, and report their lengths.

        Raises:
            FileNotFoundError: a source or the tokenizer is not there.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: a source or the tokenizer is not set, or the trainer would replace the batches.
        """
        required = STAGES[stage][0]
        if self.sources[required] is None:
            raise ValueError(f"data.{required} is not set; expected a source of pairs for the stage {stage!r}")
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("trainer.overfit_batches would replace the batches of the data; use limit_train_batches")
        new = [split for split in STAGES[stage] if self.sources[split] and split not in self.splits]
        for split in new:
            self.splits[split] = self._prepare(split)
            self.lengths[split] = self._report(split)
        if new and self._share(self.batch_size).rank == 0:
            show({split: self.lengths[split] for split in new})

    def prepare_all(self) -> Mapping[str, LengthReport]:
        """Read, check and tokenize every split that has a source, without a trainer; the reports of their lengths.

        Raises:
            FileNotFoundError: a source or the tokenizer is not there.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: the tokenizer or every source is not set.
        """
        if not any(self.sources.values()):
            raise ValueError("no data is set; expected data.train or another split's source")
        for split in self.sources:
            if self.sources[split]:
                self.splits[split] = self._prepare(split)
                self.lengths[split] = self._report(split)
        return self.lengths

    def _prepare(self, split: str) -> Split:
        quality = self.quality_prompt if self.prompted else None
        tokenize = Tokenize(Encoder(self.tokenizer), self.truncation, quality)
        return prepare(str(self.sources[split]), self.format, tokenize, self.bad_rows)

    def _report(self, split: str) -> LengthReport:
        """Count, and say aloud what a person should look at before training."""
        prepared = self.splits[split]
        report = split_report(prepared, self.splits.get("train") if split != "train" else None)
        step = self._share(self.batch_size).step_size if split == "train" else 0
        for warning in warnings(report, step):
            rank_zero_warn(f"data.{split} ({prepared.source}): {warning}")
        return report

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, loaded once."""
        if self._tokenizer is None:
            if self.tokenizer_name is None:
                raise ValueError("data.tokenizer is not set; expected a folder or hub name, as a rule the policy's")
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.revision)
        return self._tokenizer

    # ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def train_batches(self) -> int:
        """Training batches per rank and epoch, also before there is a loader."""
        return len(self._plan())

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of about equal lengths, from the restored position on."""
        self._loader = ResumableLoader(
            self.splits["train"].store, self._plan(), Collate(self.pad_token), self._limit(), self.num_workers
        )
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> DataLoader[PairBatch] | list[DataLoader[PairBatch]]:
        """Every validation pair once; no loader without a validation source."""
        return self._evaluation("validation") if "validation" in self.splits else []

    def test_dataloader(self) -> DataLoader[PairBatch]:
        """Every test pair once."""
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader[PairBatch]:
        """Every pair to predict once."""
        return self._evaluation("predict")

    def _evaluation(self, split: str) -> DataLoader[PairBatch]:
        store = self.splits[split].store
        batches = SequentialBatches(len(store), self._share(self.eval_batch_size))
        return evaluation_loader(store, batches, Collate(self.pad_token), self.num_workers)

    def _plan(self) -> BucketedBatches:
        widths = self.splits["train"].store.widths.tolist()
        return BucketedBatches(widths, self._share(self.batch_size), self.seed)

    def _share(self, batch_size: int) -> Share:
        if self.trainer is None:
            return Share(batch_size)
        trainer = self.trainer
        return Share(batch_size, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def _limit(self) -> int | None:
        """Batches of an epoch that the trainer uses, if it is told to stop early."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return limit if isinstance(limit, int) else int(self.train_batches * (1.0 if limit is None else limit))

    # ── what others ask ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> dict[str, list[PreferencePair]]:
        """Split → its pairs as text; ``rows[split][index]`` belongs to ``PairBatch.index``."""
        return {name: split.pairs for name, split in self.splits.items()}

    def extra(self, split: str, index: int) -> dict[str, Any]:
        """The other columns of a row, for reports beside the predictions."""
        return dict(self.splits[split].pairs[index].extra)

    @property
    def pad_token(self) -> int:
        """Id to pad with; EOS where the tokenizer has no token of its own for it."""
        return Encoder(self.tokenizer).pad

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a response: EOS, and the template's end of turn where the data is in a template."""
        ends = {token for split in self.splits.values() for token in split.store.end_tokens}
        return frozenset(ends | {int(self.tokenizer.eos_token_id)})

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids, with control tokens visible and blanks as they are."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def sample_prompts(self, count: int) -> list[SamplePrompt]:
        """Prompts taken evenly from the validation pairs, or from the training pairs if there are none.

        Args:
            count: how many at most.
        """
        split = self.splits["validation" if "validation" in self.splits else "train"]
        total = len(split.pairs)
        places = sorted({math.floor(number * total / count) for number in range(count)})
        return [self._sample_prompt(split, place) for place in places]

    def _sample_prompt(self, split: Split, place: int) -> SamplePrompt:
        ids, text = split.store[place].prompt, split.pairs[place].prompt
        return SamplePrompt(ids, text if isinstance(text, str) else self.decode(ids))

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────

    def state_dict(self) -> dict[str, Any]:
        """Position in the training data, and what it is a position in."""
        if self._loader is None:
            return {}
        return {"position": self._loader.state_dict(), **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position over.

        Raises:
            ValueError: it is a position in other data, or in the middle of an epoch of other batches.
        """
        if not state_dict or "train" not in self.splits:
            return
        for key, found in self._identity().items():
            if state_dict[key] != found and (key == "fingerprint" or state_dict["position"]["done"]):
                raise ValueError(
                    f"the checkpoint's training data is not this one: {_MEANING[key]} was {state_dict[key]} and is "
                    f"{found}. Resume with the data and settings of the first run, or start anew from its weights"
                )
        self._position = state_dict["position"]
        if self._loader is not None:
            self._loader.load_state_dict(self._position)

    def _identity(self) -> dict[str, Any]:
        share = self._share(self.batch_size)
        return {
            "fingerprint": self.splits["train"].store.fingerprint,
            "global_batch": share.global_size,
            "step": share.step_size,
            "seed": self.seed,
        }


_MEANING = {
    "fingerprint": "the fingerprint of the tokenized pairs",
    "global_batch": "the number of pairs per batch of all processes",
    "step": "the number of pairs per optimizer step",
    "seed": "data.seed",
}
