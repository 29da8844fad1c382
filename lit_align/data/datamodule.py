"""The Lightning data module of preference data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lit_align import testbed
from lit_align.data.batches.batched_data import BatchedData
from lit_align.data.batches.dataset import SamplePrompt, sample_prompts
from lit_align.data.batches.loader import BatchBudget
from lit_align.data.formats.columns import ColumnMap, Columns
from lit_align.data.formats.conversations import Score
from lit_align.data.formats.rankings import PairingName, Ranking
from lit_align.data.formats.registry import FormatName, formats
from lit_align.data.prepared.cache import PreparedCache
from lit_align.data.prepared.mixture import Sources, as_sources
from lit_align.data.prepared.prepare import Split, check_ranking_settings, prepare_split
from lit_align.data.prepared.read_split import Holdout, SplitReader
from lit_align.data.prepared.row_counts import BadRows, OnBadRow
from lit_align.data.prepared.workers import with_progress, without_progress
from lit_align.data.report.lengths import LengthReport, split_report
from lit_align.data.report.table import show, warnings
from lit_align.data.text.chat_template import read_date
from lit_align.data.text.render import QUALITY_PROMPT, QualityPosition, RenderName, RenderOptions, is_dialogue
from lit_align.data.text.responses import ScoreEnd
from lit_align.data.text.template_losses import OnTemplateLoss
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import PromptSide, TruncationName, make_truncation
from lit_align.errors import DataError, check_range
from lit_align.types import PreferencePair

_LOOKED_AT = 100
"""Pairs of a split that tell of what kind its texts are."""
STAGES: Mapping[str, Sequence[str]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}


class PreferenceData(BatchedData):
    """Preference pairs from files or the hub, checked and tokenized before any model exists.

    Args:
        train: source of the training pairs: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, a
            pattern (``shards/*.parquet``), a folder written by ``save_to_disk``, ``testbed:train``, or
            ``owner/name[#config][@revision][:split]`` on the hub, with the prefix ``stream:`` to read it during the
            download. A list of these, or of ``{path, weight, repeat, columns, format}``, is a mixture.
        validation: source of the validation pairs; None for none.
        test: source for ``test``.
        predict: source for ``predict``; its other columns are written beside the predictions.
        tokenizer: local folder, hub name or ``testbed:policy``; the command line uses the policy's if None.
        revision: branch, tag or commit hash of a hub tokenizer.
        format: format of the rows; ``auto`` detects it from the columns of a file's first row.
        columns: where a source keeps its columns (``{prompt: question, margin: null}``), unless it sets its own.
        pairing: which pairs are made of the responses of a ranking.
        min_gap: smallest difference of two scores of a ranking that makes a pair.
        limit: use only the first training pairs, for example to overfit a few. Every row is still checked, and pairs
            that ``truncation`` drops count.
        holdout: share of the training prompts, or number of pairs, to validate on, instead of ``validation``.
        render: render dialogues written as text (HH-RLHF) as ``chat`` messages in the chat template, or leave them
            ``text``; None for ``chat`` if the tokenizer has a template.
        chat_template: file with a chat template (Jinja) that replaces the tokenizer's own.
        template_date: date (2024-07-26) that a chat template which asks for it is told; None for today, and on the
            command line for the day on which the run first started.
        on_template_loss: stop if the chat template leaves out a message or its content, or only warn. Other keys and
            tools that it leaves out are warned of with either.
        score: of a response with several turns, score the assistant's ``last_turn`` only, or ``all_turns`` of the
            assistant after the prompt that both sides share. Turns of others are never scored.
        score_end: of what the chat template writes behind a response, keep and score the token that ends the ``turn``,
            or ``all``, such as an EOS behind it.
        batch_size: pairs per process and batch; None for 8, unless ``tokens_per_batch`` is set.
        tokens_per_batch: tokens per process and batch, both sides with padding, instead of a number of pairs. Every
            optimizer step is still the mean over its pairs; a step of short pairs has more of them.
        eval_batch_size: pairs per process and evaluation batch; None for ``batch_size``, or for as many of the longest
            pair as fit into ``tokens_per_batch``.
        max_length: maximum number of tokens of prompt and response together.
        max_response_length: maximum number of tokens of a response; None shares the room between prompt and response.
        min_response: tokens reserved for a response however long its prompt is; None for ``max_response_length`` or
            half of the room.
        truncation: ``cut`` what is too long; ``cut_prompts``, and drop pairs whose response is too long; or ``drop``
            every pair that is too long. A response that was cut has no EOS: nothing about its end is scored.
        truncate_prompt: side from which a prompt is cut; ``right`` keeps what opens the response.
        on_bad_row: stop with the first rows that cannot be used, or drop them.
        max_dropped: largest share of a source's rows that may be dropped.
        quality_prompt: the text p that self-refinement puts in front of the query.
        quality_prompt_position: where it stands in a prompt of several turns: at its ``start``, as in the paper, or
            at the start of its ``last_turn``.
        prompted: build the batches under p ⊕ x as well.
        mismatched: build batches of each prompt with the responses of another row as well; a response that is too
            long for the prompt is cut at its end.
        num_workers: worker processes per loader.
        tokenize_workers: processes that tokenize; None for one per core, unless the data is small. The pairs are the
            same for any number.
        cache: folder that keeps prepared pairs for later runs, found by their content; ``auto`` keeps those of large
            files in ``LIT_ALIGN_CACHE`` or ``~/.cache/lit_align/data``, None keeps nothing.
        seed: seed of the order of the training pairs; the command line uses that of the run if None.

    Raises:
        ValueError: a number is out of range, or settings contradict each other.
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
        render: RenderName | None = None,
        chat_template: str | None = None,
        template_date: str | None = None,
        on_template_loss: OnTemplateLoss = "error",
        score: Score = "last_turn",
        score_end: ScoreEnd = "turn",
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        eval_batch_size: int | None = None,
        max_length: int = 512,
        max_response_length: int | None = None,
        min_response: int | None = None,
        truncation: TruncationName = "cut",
        truncate_prompt: PromptSide = "left",
        on_bad_row: OnBadRow = "error",
        max_dropped: float = 0.01,
        quality_prompt: str = QUALITY_PROMPT,
        quality_prompt_position: QualityPosition = "start",
        prompted: bool = False,
        mismatched: bool = False,
        num_workers: int = 0,
        tokenize_workers: int | None = None,
        cache: str | None = "auto",
        seed: int | None = None,
    ) -> None:
        check_range("data.limit", limit, 1)
        check_range("data.max_dropped", max_dropped, 0, 1)
        check_range("data.num_workers", num_workers, 0)
        check_range("data.tokenize_workers", tokenize_workers, 0)
        if holdout is not None and validation is not None:
            raise ValueError("data.validation and data.holdout are both set; expected one of them")
        budget = BatchBudget.from_settings(batch_size, tokens_per_batch, eval_batch_size)
        super().__init__(budget, max_length, mismatched, num_workers, seed or 0)
        self.limit = limit
        self.ranking = Ranking.from_settings(pairing, min_gap, self.seed)
        self.truncation = make_truncation(truncation, max_length, max_response_length, min_response, truncate_prompt)
        self.render_options = RenderOptions(
            quality_prompt if prompted else None, score, score_end, on_template_loss, quality_prompt_position
        )
        self.render = render
        self.quality_prompt = quality_prompt
        self.prompted = prompted
        self.bad_rows = BadRows(on_bad_row, max_dropped)
        self.tokenizer_name = tokenizer
        self.revision = revision
        self.chat_template = chat_template
        self.template_date = read_date(template_date) or date.today()
        self.tokenize_workers = tokenize_workers
        self.cache = cache
        held_out = None if holdout is None else Holdout(holdout, self.seed)
        default_columns = dict(Columns(columns or {}).paths)
        configured = {"train": train, "validation": validation if holdout is None else train, "test": test}
        sources_of = {name: as_sources(source) for name, source in {**configured, "predict": predict}.items()}
        self.readers = {
            name: SplitReader(
                sources=tuple(source.with_defaults(default_columns, format) for source in sources),
                formats=formats(self.ranking, score),
                holdout=held_out if name in ("train", "validation") else None,
                held_out=name == "validation",
                seed=self.seed,
                limit=limit if name == "train" else None,
            )
            for name, sources in sources_of.items()
            if sources
        }
        self.lengths: dict[str, LengthReport] = {}
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def setup(self, stage: str) -> None:
        """Read, check and tokenize the splits of a stage, and report their lengths.

        Raises:
            FileNotFoundError: a source or the tokenizer does not exist.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: a source or the tokenizer is not set, the trainer would replace the batches, or a setting
                would have no effect.
        """
        if self.trainer is not None:  # processes that start on both sides of midnight have other dates
            self.template_date = self.trainer.strategy.broadcast(self.template_date)
        required = STAGES[stage][0]
        if required not in self.readers:
            stage_name = getattr(stage, "value", stage)
            raise ValueError(f"data.{required} is not set; expected a source of pairs for {stage_name}")
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("trainer.overfit_batches would replace the batches of the data; expected data.limit")
        changed = {
            "data.quality_prompt": self.quality_prompt != QUALITY_PROMPT,
            "data.quality_prompt_position": self.render_options.quality_position != "start",
        }
        for key in (key for key, differs in changed.items() if differs and not self.prompted):
            raise ValueError(f"{key} would have no effect: the objective does not compare with a quality prompt")
        new = [split for split in STAGES[stage] if split in self.readers and split not in self.splits]
        self._prepare(new)
        if new and self.told_date is not None:
            rank_zero_info(f"the chat template asks for the date and is told {self.told_date} (data.template_date)")
        if new and self.share.rank == 0:
            show({split: self.lengths[split] for split in new})

    def prepare_all(self) -> Mapping[str, LengthReport]:
        """Read, check and tokenize every split that has a source, without a trainer, and return their reports.

        Raises:
            FileNotFoundError: a source or the tokenizer does not exist.
            DataError: rows cannot be used; the message lists the first ten by file and line.
            ValueError: the tokenizer or every source is not set, or a setting would have no effect.
        """
        if not self.readers:
            raise ValueError("no data is set; expected data.train or another split's source")
        self._prepare(self.readers)
        return self.lengths

    def _prepare(self, names: Sequence[str] | Mapping[str, SplitReader]) -> None:
        for name in names:
            split = self.splits[name] = self.prepare_split(name)
            self._datasets.pop(name, None)
            self.lengths[name] = split_report(split, self.splits.get("train") if name != "train" else None)
            for warning in warnings(self.lengths[name], self.budget.step_size(self.share) if name == "train" else 0):
                rank_zero_warn(f"data.{name} ({split.source}): {warning}")
            self._tell_rendering(name)
        check_ranking_settings(self.ranking, self.readers, self.splits, self.limit)

    def prepare_split(self, name: str) -> Split:
        """Read, check and tokenize one split, without keeping it."""
        options = replace(self.render_options, dialogues=self.renders_dialogues)
        tokenize = Tokenize(Encoder(self.tokenizer, self.template_date), self.truncation, options)
        reader = self.readers[name]
        shows_progress = self.trainer is None or self.trainer.progress_bar_callback is not None
        watch = with_progress if shows_progress else without_progress
        try:
            cache = PreparedCache.from_setting(self.cache, reader)
            return prepare_split(reader, tokenize, self.bad_rows, cache, self.tokenize_workers, watch)
        except DataError as error:
            raise DataError(f"data.{name}: {error.where}", error.reason, error.column) from error.__cause__
        except FileNotFoundError as error:
            raise FileNotFoundError(f"data.{name}: {error}") from None

    def _tell_rendering(self, name: str) -> None:
        """Tell how texts are rendered if the tokenizer has a chat template and no setting says so."""
        texts = [pair.prompt for pair in self.splits[name].pairs[:_LOOKED_AT] if isinstance(pair.prompt, str)]
        has_template = Encoder(self.tokenizer).template is not None
        if self.render is not None or not texts or not has_template or testbed.resolve(str(self.tokenizer_name)):
            return
        if any(map(is_dialogue, texts)):
            rank_zero_info(f"data.{name}: dialogues are rendered in the chat template (data.render text leaves them)")
        if not all(map(is_dialogue, texts)):
            rank_zero_warn(
                f"data.{name}: plain text, and the tokenizer has a chat template that is not used; write messages "
                "(format: chat) if the model is to answer in chats, or set data.render to text to say that it is meant"
            )

    @property
    def renders_dialogues(self) -> RenderName:
        """How dialogues written as text are rendered."""
        return self.render or ("text" if Encoder(self.tokenizer).template is None else "chat")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        if self._tokenizer is None:
            if self.tokenizer_name is None:
                raise ValueError("data.tokenizer is not set; expected a folder or hub name, as a rule the policy's")
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.revision, self.chat_template)
        return self._tokenizer

    @property
    def template_hash(self) -> str | None:
        """SHA-256 of the chat template; None if the tokenizer has none."""
        return Encoder(self.tokenizer).template_hash

    @property
    def told_date(self) -> str | None:
        """The date that the chat template is told; None if it does not ask for it."""
        return str(self.template_date) if Encoder(self.tokenizer).reads_clock else None

    # ── rows, tokens, prompts ───────────────────────────────────────────────────────────────────────────────────────

    @property
    def rows(self) -> dict[str, Sequence[PreferencePair]]:
        """Split → its pairs as text, decoded on access; ``PairBatch.index`` is the position in a split."""
        return {name: split.pairs for name, split in self.splits.items()}

    def extra(self, split: str, index: int) -> dict[str, Any]:
        """Return the other columns of a row, to be written beside its predictions."""
        return dict(self.splits[split].pairs[index].extra)

    @property
    @override
    def pad_token(self) -> int:
        return Encoder(self.tokenizer).pad

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token → id."""
        return dict(self.tokenizer.get_vocab())

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end a response: EOS and, for data in a chat template, the template's end of turn."""
        return self.response_ends | {int(self.tokenizer.eos_token_id)}

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to text, keeping control tokens and blanks."""
        return Encoder(self.tokenizer).decode(ids)

    def decode_response(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Convert ids of a response to its text behind a prompt, with the blank that it begins with."""
        return Encoder(self.tokenizer).decode_response(prompt, ids)

    def sample_prompts(self, count: int) -> list[SamplePrompt]:
        """Return evenly spaced prompts of the validation pairs, or of the training pairs if there are none."""
        split = self.splits["validation" if "validation" in self.splits else "train"]
        return sample_prompts(split, count, self.decode)

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {
            "fingerprint": self.splits["train"].fingerprint,
            "template": self.template_hash,
            "date": self.told_date,
            "render": self.renders_dialogues,
        }
