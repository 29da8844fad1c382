"""The numbers of ``evaluate`` at chosen steps of a run, so that win rate, length and benchmarks have curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_align.compat.lightning import is_accumulating, writes_files
from lit_align.data import PreferenceData
from lit_align.data.formats.registry import FormatName
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import check_range
from lit_align.evaluation.benchmarks import benchmark_metrics, benchmark_tasks, check_harness
from lit_align.evaluation.evaluate import START, along_responses, own_metrics
from lit_align.evaluation.judges import Judge, make_judge
from lit_align.evaluation.judging import (
    Collected,
    JudgedResponses,
    KeptJudge,
    judge_models,
    judged_metrics,
    longer_than,
    score_records,
)
from lit_align.evaluation.models import LoadedModel, load_hugging_face
from lit_align.evaluation.preference_sets import pair_margins, pair_metrics, read_pairs
from lit_align.evaluation.prompts import EvaluationPrompt, read_prompts
from lit_align.evaluation.record import MetricEstimate, append_jsonl, drop_cut_line, read_jsonl
from lit_align.evaluation.respond import EvaluationResponse, generate_responses
from lit_align.evaluation.win_rates import length_controlled
from lit_align.models.generation import CachedGenerator
from lit_align.models.loading import Loading
from lit_align.models.narrow import evaluating
from lit_align.models.reference.base import ModelReference
from lit_align.models.sampling import Sampling
from lit_align.modules import LitModule
from lit_align.modules.step_totals import run_data
from lit_align.types import PreferencePair

EVALUATION_ROWS = "evaluation.jsonl"
PREFIX = "eval"
WITH_INTERVAL = ("score", "win_rate", "win_rate/length_controlled", "kl", "length/tokens")
"""Numbers whose interval is reported as well, as ``.../low`` and ``.../high``."""
_BENCHMARKS = Path("benchmarks")


class TrainingEvaluation(Callback):
    """Evaluates the policy before training, at chosen steps, and at the end; off without prompts, pairs and tasks.

    Reports ``eval/...``: what ``evaluate`` gives, under the same names. ``ModelCheckpoint`` and ``EarlyStopping`` can
    follow them. Responses and judgements of every step are written to ``evaluation.jsonl``.

    Args:
        prompts: held-out prompts, as a source of data; None for none.
        format: of prompts and pairs, as ``data.format``.
        chat: make messages of what is plain text.
        limit: most prompts, and most pairs, evenly spaced; None for all.
        every: optimizer steps from one evaluation to the next; None evaluates with each validation.
        sampling: how responses are sampled; the seed has no effect.
        seeds: one response to each prompt for each seed.
        judge: ``testbed``, ``reward:FOLDER``, ``scores:module.function``, ``compares:module.function`` or
            ``llm:MODEL``; None for none.
        baseline: what the policy is compared with: ``start``, itself before the first step, or a model's folder or
            hub name.
        pairs: preference pairs for the accuracy of implicit rewards; None for none.
        by: column of the pairs to group by.
        tasks: of lm-evaluation-harness, or ``paper``; None for none.
        task_limit: rows of each task; None for all.
        batch_size: responses that are sampled at once.
        resamples: draws of the bootstrap.

    Raises:
        ValueError: a number is out of range, or a setting has no effect.
    """

    def __init__(
        self,
        prompts: str | None = None,
        format: FormatName = "auto",
        chat: bool = False,
        limit: int | None = 64,
        every: int | None = None,
        sampling: Sampling = Sampling(max_new_tokens=128),
        seeds: tuple[int, ...] = (0,),
        judge: str | None = None,
        baseline: str = START,
        pairs: str | None = None,
        by: str | None = None,
        tasks: str | None = None,
        task_limit: int | None = None,
        batch_size: int = 32,
        resamples: int = 500,
    ) -> None:
        check_range("evaluation.limit", limit, 1)
        check_range("evaluation.every", every, 1)
        check_range("evaluation.batch_size", batch_size, 1)
        check_range("evaluation.resamples", resamples, 10)
        if judge is not None and prompts is None:
            raise ValueError("evaluation.judge has no effect without evaluation.prompts")
        if by is not None and pairs is None:
            raise ValueError("evaluation.by has no effect without evaluation.pairs")
        self.prompts, self.format, self.chat, self.limit, self.every = prompts, format, chat, limit, every
        self.sampling, self.seeds, self.judge, self.baseline = sampling, tuple(seeds), judge, baseline
        self.pairs, self.by, self.tasks, self.task_limit = pairs, by, tasks, task_limit
        self.batch_size, self.resamples = batch_size, resamples
        self._prompts: list[EvaluationPrompt] = []
        self._pairs: list[PreferencePair] = []
        self._judge: Judge | None = None
        self._baseline: Collected | None = None
        self._step = -1

    @property
    def is_on(self) -> bool:
        """Whether there is anything to evaluate on."""
        return any(source is not None for source in (self.prompts, self.pairs, self.tasks))

    def reports(self, name: str) -> bool:
        """Return whether a number of this name may be reported."""
        parts = {
            f"{PREFIX}/pairs/": self.pairs,
            f"{PREFIX}/benchmark/": self.tasks,
            f"{PREFIX}/score": self.judge,
            f"{PREFIX}/win_rate": self.judge,
            f"{PREFIX}/judge_prefers_longer": self.judge,
        }
        of_text = ("length/", "ended", "repetition", "distinct_", "entropy", "kl")
        own = any(name.startswith(f"{PREFIX}/{part}") for part in of_text) and self.prompts is not None
        return own or any(name.startswith(start) and source is not None for start, source in parts.items())

    # ── when ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read prompts, pairs and the judge's settings before any weights are, so that mistakes show at once."""
        if stage != "fit" or not self.is_on:
            return
        if self.tasks is not None:
            check_harness()
        if self.prompts is not None:
            self._prompts = read_prompts(self.prompts, self.format, self.limit, self.chat)
        if self.pairs is not None:
            self._pairs = read_pairs(self.pairs, self.format, self.limit, self.chat)
        if self.judge is not None and trainer.is_global_zero:
            self._judge = make_judge(self.judge)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the baseline's responses, and evaluate the policy before its first step."""
        if not self.is_on or not _trains_policy(pl_module):
            return
        self._baseline = self._known_baseline(trainer, pl_module)
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every and not is_accumulating(trainer) and trainer.global_step % self.every == 0:
            self._evaluate(trainer, pl_module)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before `on_validation_end`, where callbacks look at the metrics that they follow
        if self.every is None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._evaluate(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module)

    # ── what ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate the policy, unless it has been at this step, and report the numbers."""
        if not self.is_on or self._step == trainer.global_step or not isinstance(module, LitModule):
            return
        if not module.trains_policy:
            return
        self._step = trainer.global_step
        loaded = loaded_policy(trainer, module)
        with evaluating(module.trained_model):
            metrics = self._metrics(trainer, module, loaded)
        values = trainer.strategy.broadcast(reported_values(metrics))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def _metrics(self, trainer: Trainer, module: LitModule, loaded: LoadedModel) -> dict[str, MetricEstimate]:
        """Compute the numbers; all processes take part in what the model does, and rank zero judges."""
        metrics: dict[str, MetricEstimate] = {}
        if self._prompts:
            collected = self._collect(module, loaded)
            if self._baseline is None and self.baseline == START and trainer.global_step == 0:
                self._baseline = collected
            if trainer.is_global_zero:
                metrics |= self._judged(trainer, collected)
        if self._pairs:
            margins, _ = pair_margins(loaded, None, self._pairs, self.by, self.batch_size)
            metrics |= pair_metrics(margins, self.by, self.resamples)
        if self.tasks is not None:
            tasks = benchmark_tasks(self.tasks)
            with TemporaryDirectory() as folder:
                path, limit, size = Path(folder) / _BENCHMARKS, self.task_limit, self.batch_size
                metrics |= benchmark_metrics(loaded, tasks, path, limit, size, self.resamples)
        return metrics

    def _collect(self, module: LitModule, loaded: LoadedModel) -> Collected:
        responses = self._responses(loaded)
        reference = module.reference
        if not isinstance(reference, ModelReference):
            return Collected("policy", "policy", responses, along_responses(loaded, None, responses, self.batch_size))
        with reference.ready() as model:
            frozen = replace(loaded, model=model)
            rows = along_responses(loaded, frozen, responses, self.batch_size)
        return Collected("policy", "policy", responses, rows)

    def _responses(self, loaded: LoadedModel) -> list[EvaluationResponse]:
        tokens = loaded.prompt_ids(self._prompts, self.sampling.max_new_tokens)
        ids = dict(zip((prompt.index for prompt in self._prompts), tokens, strict=True))
        stops = loaded.stop_tokens(self._prompts)
        wanted = [(prompt, seed) for prompt in self._prompts for seed in self.seeds]
        return generate_responses(loaded, wanted, ids, stops, self.sampling, CachedGenerator(self.batch_size))

    def _judged(self, trainer: Trainer, collected: Collected) -> dict[str, MetricEstimate]:
        """Judge responses, write them, and return all numbers on them."""
        metrics = own_metrics(collected, self.resamples)
        judged = JudgedResponses()
        base = self._baseline if self._baseline is not collected else None
        if self._judge is not None:
            models = {"policy": collected} | ({} if base is None else {"baseline": replace(base, name="baseline")})
            by_index = {prompt.index: prompt for prompt in self._prompts}
            if self._judge.scores_alone or base is not None:
                against = None if base is None else "baseline"
                judged = judge_models(KeptJudge(self._judge), by_index, models, against)["policy"]
                metrics |= judged_metrics(collected, base, judged, self.resamples)
        if judged.comparisons is not None and base is not None:
            compared = {"policy": collected.cells(judged.comparisons)}
            controlled, _ = length_controlled(compared, {"policy": longer_than(collected, base)}, 50)
            metrics["win_rate/length_controlled"] = controlled["policy"]
        if writes_files(trainer):
            append_jsonl(_rows_file(trainer), list(_records(trainer.global_step, collected, judged)))
        return metrics

    def _known_baseline(self, trainer: Trainer, module: LightningModule) -> Collected | None:
        """Return the responses of the baseline, which a resumed run has in its file; None before the first step."""
        if not self._prompts or self.judge is None or not trainer.is_global_zero:
            return None
        if self.baseline != START:
            loading = Loading(dtype="float32")
            loaded = load_hugging_face(self.baseline, "baseline", loading, str(module.device))
            return Collected("baseline", self.baseline, self._responses(loaded))
        if trainer.global_step == 0:
            return None
        drop_cut_line(_rows_file(trainer))
        fields = EvaluationResponse.__dataclass_fields__
        rows = [row for row in read_jsonl(_rows_file(trainer)) if row["step"] == 0]
        responses = [EvaluationResponse(**{name: row[name] for name in fields}) for row in rows]
        wanted = {(prompt.index, seed): prompt.text for prompt in self._prompts for seed in self.seeds}
        if {row.key: row.prompt for row in responses} != wanted:
            raise ValueError(
                f"evaluation.baseline is start, and {_rows_file(trainer)} lacks responses of the policy before its "
                "first step to these prompts; name a model, or leave prompts, limit and seeds as they were"
            )
        return Collected("baseline", START, responses)


def _trains_policy(module: LightningModule) -> bool:
    return isinstance(module, LitModule) and module.trains_policy


def _rows_file(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / EVALUATION_ROWS


def loaded_policy(trainer: Trainer, module: LitModule) -> LoadedModel:
    """Return the policy of a run as evaluations take it.

    Raises:
        ValueError: the run's data is not a ``PreferenceData``.
    """
    data: Any = run_data(trainer)
    if not isinstance(data, PreferenceData):
        raise ValueError("evaluation needs the run's data to be a PreferenceData")
    options = replace(data.render_options, dialogues=data.renders_dialogues, quality_prompt=None)
    encoder = Encoder(data.tokenizer, data.template_date)
    identity = {"step": trainer.global_step}
    return LoadedModel("policy", "policy", module.trained_model, encoder, options, data.response_ends, identity)


def reported_values(metrics: dict[str, MetricEstimate]) -> dict[str, float]:
    """Return the numbers by the names that loggers get.

    >>> reported_values({"score": MetricEstimate(1.0, 0.5, 1.5, 9), "ended": MetricEstimate(0.9, 0.8, 1.0, 9)})
    {'eval/score': 1.0, 'eval/score/low': 0.5, 'eval/score/high': 1.5, 'eval/ended': 0.9}
    """
    values: dict[str, float] = {}
    for name, number in metrics.items():
        values[f"{PREFIX}/{name}"] = number.value
        if name in WITH_INTERVAL and number.low is not None and number.high is not None:
            values |= {f"{PREFIX}/{name}/low": number.low, f"{PREFIX}/{name}/high": number.high}
    return values


def _records(step: int, collected: Collected, judged: JudgedResponses) -> Iterator[dict[str, Any]]:
    scores: Sequence[dict[str, Any]] = list(score_records(collected, judged))
    for response, score in zip(collected.responses, scores, strict=True):
        yield {"step": step, **asdict(response), **score}
