"""Preference data as a Lightning data module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import MismatchedPairs, SamplePrompt, mismatched_widths, partners, sample_prompts
from lit_align.data.batches.loader import ResumableLoader, check_identity, evaluation_loader
from lit_align.data.batches.padding import Fullness, fullness_of
from lit_align.data.batches.sampler import ListedBatches, PairBatches, Share, rows_of_steps
from lit_align.data.batches.token_batches import budget_of
from lit_align.data.formats.columns import ColumnMap, Columns
from lit_align.data.formats.conversations import Score
from lit_align.data.formats.rankings import PairingName
from lit_align.data.formats.registry import FormatName
from lit_align.data.prepared.mixture import Sources, as_sources
from lit_align.data.prepared.prepare import Split
from lit_align.data.prepared.read_split import Holdout
from lit_align.data.prepared.recipe import Recipe, Room, ranking_of
from lit_align.data.prepared.row_counts import BadRows, OnBadRow
from lit_align.data.report.lengths import LengthReport, split_report
from lit_align.data.report.table import show, warnings
from lit_align.data.text.render import QUALITY_PROMPT
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import PromptSide
from lit_align.errors import check_range
from lit_align.types import PairBatch, PreferencePair, TokenizedPair

STAGES: Mapping[str, Sequence[str]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class PreferenceData(LightningDataModule):
    """Preference pairs from files or the hub, checked and tokenized before any model exists.

    Args:
        train: source of the training pairs: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, a
            pattern (``shards/*.parquet``), a folder of ``save_to_disk``, ``testbed:train``, or
            ``owner/name[#config][@revision][:split]`` on the hub, with ``stream:`` in front to read while downloading.
            Or a list of these, or of ``{path, weight, repeat, columns, format}``, for a mixture.
        validation: source of the validation pairs; None for none.
        test: source for ``test``.
        predict: source for ``predict``; its other columns are written beside the predictions.
        tokenizer: local folder, hub name or ``testbed:policy``; the command line takes the policy's if None.
        revision: branch, tag or commit hash of a hub tokenizer.
        format: how rows spell their prompt and responses; ``auto`` decides by the columns of a file's first row.
        columns: where a source keeps its columns (``{prompt: question, margin: null}``), unless it says so itself.
        pairing: which pairs are made of the responses of a ranking.
        min_gap: by how much two scores of a ranking must differ at least to make a pair.
        limit: use the first so many training pairs alone, as to learn a few by heart; every row is checked all the
            same, and what ``truncation`` leaves out counts among them.
        holdout: share of the training prompts, or number of pairs, to validate on, in place of ``validation``.
        chat_template: file with a chat template (Jinja) in place of the tokenizer's own.
        score: of a response of several turns, the assistant's ``last_turn`` alone, or ``all_turns`` of the
            assistant's behind the prompt that both sides share; the turns in between are never scored.
        batch_size: pairs per process and batch; None for 8, or for what ``tokens_per_batch`` says.
        tokens_per_batch: tokens per process and batch, both sides and padding, in place of a number of pairs. Every
            optimizer step is still the mean over its pairs: a step of short pairs has more of them.
        eval_batch_size: pairs per process and batch of evaluation; None for ``batch_size``, or for as many of the
            longest pair as fit into ``tokens_per_batch``.
        max_length: tokens of prompt and response together.
        max_response_length: tokens of a response at most; None shares the room between prompt and response.
        min_response: tokens that are kept for a response however long its prompt; None for ``max_response_length``
            or half of the room.
        truncation: ``cut`` what is too long, ``cut_prompts`` and leave out pairs whose response is too long, or
            ``drop`` every pair that is too long. A response that was cut has no EOS: nothing about its end is scored.
        truncate_prompt: the side a prompt is cut from; ``right`` keeps what opens the response.
        on_bad_row: stop with the first rows that cannot be used, or go on without them.
        max_dropped: the share of a source's rows that may be left out.
        quality_prompt: the text p that self-refinement puts in front of the query.
        prompted: build the batches under p ⊕ x as well.
        mismatched: build batches of each prompt with the responses of another row as well; a response that is too
            long for the prompt is cut at its end.
        num_workers: processes per loader.
        tokenize_workers: processes that tokenize; None for as many as there are cores, once data is not small. The
            pairs are the same for any number.
        cache: folder that keeps prepared pairs for later runs, found again by their content; ``auto`` keeps those of
            large files in ``LIT_ALIGN_CACHE`` or ``~/.cache/lit_align/data``, None keeps nothing.
        seed: of the order of the training pairs; the command line takes the run's if None.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        train: Sources | None = None,
        validation: Sources | None = None,
        test: Sources | None = None,
        predict: Sources | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        format: FormatName = "auto",
        columns: ColumnMap | None = None,
        pairing: PairingName = "all",
        min_gap: float = 0.0,
        limit: int | None = None,
        holdout: int | float | None = None,
        chat_template: str | None = None,
        score: Score = "last_turn",
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        max_response_length: int | None = None,
        min_response: int | None = None,
        truncation: Literal["cut", "cut_prompts", "drop"] = "cut",
        truncate_prompt: PromptSide = "left",
        on_bad_row: OnBadRow = "error",
        max_dropped: float = 0.01,
        quality_prompt: str = QUALITY_PROMPT,
        prompted: bool = False,
        mismatched: bool = False,
        num_workers: int = 0,
        tokenize_workers: int | None = None,
        cache: str | None = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_range("data.limit", limit, 1)
        check_range("data.max_dropped", max_dropped, 0, 1)
        check_range("data.num_workers", num_workers, 0)
        check_range("data.tokenize_workers", tokenize_workers, 0)
        if holdout is not None and validation is not None:
            raise ValueError("data.validation and data.holdout are both set; expected one of them")
        self.seed = seed or 0
        given = {"train": train, "validation": validation if holdout is None else train, "test": test}
        self.sources = {name: as_sources(found) for name, found in {**given, "predict": predict}.items()}
        self.recipe = Recipe(
            sources=self.sources,
            columns=dict(Columns(columns or {}).paths),
            format=format,
            ranking=ranking_of(pairing, min_gap, self.seed),
            score=score,
            limit=limit,
            holdout=None if holdout is None else Holdout(holdout, self.seed),
            truncation=Room(max_length, max_response_length, min_response, truncate_prompt).truncation(truncation),
            quality_prompt=quality_prompt,
            bad_rows=BadRows(on_bad_row, max_dropped),
            tokenize_workers=tokenize_workers,
            cache=cache,
            seed=self.seed,
        )
        self.tokenizer_name = tokenizer
        self.revision = revision
        self.chat_template = chat_template
        self.budget = budget_of(batch_size, tokens_per_batch, eval_batch_size)
        self.prompted = prompted
        self.mismatched = mismatched
        self.num_workers = num_workers
        self.splits: dict[str, Split] = {}
        self.lengths: dict[str, LengthReport] = {}
        self._found_partners: dict[str, NDArray[np.int64]] = {}
        self._tokenizer: PreTrainedTokenizerFast | None = None
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Read, check and tokenize the splits of a stage, and report their lengths.

        Raises:
            FileNotFoundError: a source or the tokenizer is not there.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: a source or the tokenizer is not set, the trainer would replace the batches, or a setting
                would have no effect.
        """
        required = STAGES[stage][0]
        if not self.sources[required]:
            asked = getattr(stage, "value", stage)
            raise ValueError(f"data.{required} is not set; expected a source of pairs for {asked}")
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("trainer.overfit_batches would replace the batches of the data; expected data.limit")
        if self.recipe.quality_prompt != QUALITY_PROMPT and not self.prompted:
            raise ValueError("data.quality_prompt would have no effect: the objective does not compare with one")
        new = [split for split in STAGES[stage] if self.sources[split] and split not in self.splits]
        for split in new:
            self.splits[split] = self._prepare(split)
            self.lengths[split] = self._report(split)
        self.recipe.check_ranking(self.splits)
        if new and self._share.rank == 0:
            show({split: self.lengths[split] for split in new})

    def prepare_all(self) -> Mapping[str, LengthReport]:
        """Read, check and tokenize every split that has a source, without a trainer; the reports of their lengths.

        Raises:
            FileNotFoundError: a source or the tokenizer is not there.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: the tokenizer or every source is not set, or a setting would have no effect.
        """
        if not any(self.sources.values()):
            raise ValueError("no data is set; expected data.train or another split's source")
        for split in self.sources:
            if self.sources[split]:
                self.splits[split] = self._prepare(split)
                self.lengths[split] = self._report(split)
        self.recipe.check_ranking(self.splits)
        return self.lengths

    def _prepare(self, split: str) -> Split:
        return self.recipe.prepare(split, Encoder(self.tokenizer), self.prompted, self._shows_progress)

    @property
    def _shows_progress(self) -> bool:
        return self.trainer is None or self.trainer.progress_bar_callback is not None

    def _report(self, split: str) -> LengthReport:
        """Count, and say aloud what a person should look at before training."""
        prepared = self.splits[split]
        report = split_report(prepared, self.splits.get("train") if split != "train" else None)
        step = self.budget.step(self._share) if split == "train" else 0
        for warning in warnings(report, step):
            rank_zero_warn(f"data.{split} ({prepared.source}): {warning}")
        return report

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, loaded once."""
        if self._tokenizer is None:
            if self.tokenizer_name is None:
                raise ValueError("data.tokenizer is not set; expected a folder or hub name, as a rule the policy's")
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.revision, self.chat_template)
        return self._tokenizer

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template; None where the tokenizer has none."""
        template = Encoder(self.tokenizer).template
        return None if template is None else hashlib.sha256(template.encode()).hexdigest()

    # ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def train_batches(self) -> int:
        """Training batches per rank and epoch, also before there is a loader."""
        return len(self._plan())

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled batches of about equal lengths, from the restored position on."""
        self._loader = ResumableLoader(
            self._examples("train"), self._plan(), Collate(self.pad_token), self._limit(), self.num_workers
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
        return self._served(split, self.budget.evaluation(self._widths(split), self._share))

    def rows_dataloader(self, split: str, rows: Sequence[int]) -> DataLoader[PairBatch]:
        """Some rows of a split in the order given, all of them to the process that asks.

        Args:
            split: its name.
            rows: positions in the split.
        """
        every = self._widths(split)
        widths = [every[row] for row in rows]
        return self._served(split, ListedBatches(rows, self.budget.evaluation(widths, Share(1))))

    def _served(self, split: str, batches: PairBatches) -> DataLoader[PairBatch]:
        return evaluation_loader(self._examples(split), batches, Collate(self.pad_token), self.num_workers)

    def training_rows(self, steps: int) -> list[int]:
        """Positions of the training pairs that a fit of so many optimizer steps sees, of all processes together.

        Args:
            steps: optimizer steps from the start of the first epoch.
        """
        return rows_of_steps(self._plan(), self._limit(), steps)

    def _plan(self) -> PairBatches:
        return self.budget.training(self._widths("train"), self._share, self.seed)

    def _examples(self, split: str) -> Sequence[TokenizedPair]:
        found = self.splits[split]
        if not self.mismatched:
            return found.examples
        return MismatchedPairs(found.examples, self._partners(split), self.recipe.truncation.max_length)

    def _widths(self, split: str) -> list[int]:
        """What each pair costs in a batch, in tokens of one side."""
        store = self.splits[split].store
        widths = store.widths
        if self.mismatched:
            widths = mismatched_widths(store, self._partners(split), self.recipe.truncation.max_length)
        found: list[int] = widths.tolist()
        return found

    def _partners(self, split: str) -> NDArray[np.int64]:
        if split not in self._found_partners:
            try:
                self._found_partners[split] = partners(self.splits[split].store, self.seed)
            except ValueError as error:
                raise ValueError(f"data.{split}: {error}") from None
        return self._found_partners[split]

    @property
    def fullness(self) -> Fullness:
        """How full the training batches of an epoch are."""
        prompt, chosen, rejected, _ = self.splits["train"].store.part_lengths.T
        return fullness_of(self._plan(), self._widths("train"), 2 * prompt + chosen + rejected)

    @property
    def _share(self) -> Share:
        """Rank and world; how many pairs are in a batch is the budget's to say."""
        if self.trainer is None:
            return Share(1)
        trainer = self.trainer
        return Share(1, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def _limit(self) -> int | None:
        """Batches of an epoch that the trainer uses, if it is told to stop early."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return limit if isinstance(limit, int) else int(self.train_batches * (1.0 if limit is None else limit))

    # ── what others ask ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> dict[str, Sequence[PreferencePair]]:
        """Split → its pairs as text, read when asked for; ``rows[split][index]`` belongs to ``PairBatch.index``."""
        return {name: split.pairs for name, split in self.splits.items()}

    def extra(self, split: str, index: int) -> dict[str, Any]:
        """The other columns of a row, for reports beside the predictions."""
        return dict(self.splits[split].pairs[index].extra)

    @property
    def pad_token(self) -> int:
        """Id to pad with; EOS where the tokenizer has no token of its own for it."""
        return Encoder(self.tokenizer).pad

    @property
    def vocabulary(self) -> dict[str, int]:
        """Each token of the tokenizer and its id."""
        return dict(self.tokenizer.get_vocab())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of all splits."""
        return max((max(self._widths(split), default=0) for split in self.splits), default=0)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a response: EOS, and the template's end of turn where the data is in a template."""
        ends = {token for split in self.splits.values() for token in split.end_tokens}
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
        return sample_prompts(split, count, self.decode)

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
        check_identity(state_dict, self._identity(), inside_epoch=state_dict["position"]["done"] > 0)
        self._position = state_dict["position"]
        if self._loader is not None:
            self._loader.load_state_dict(self._position)

    def _identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.splits["train"].fingerprint,
            "template": self.template_hash,
            "seed": self.seed,
            **self._plan().identity,
        }
