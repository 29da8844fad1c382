"""The evaluation of models: responses, judgements, and numbers with intervals, written as an ``EvaluationRecord``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn

from lit_align import __version__
from lit_align.evaluation.intervals import RESAMPLES, PromptCells, as_cells, bootstrap, bootstrap_mean
from lit_align.evaluation.judges import Judge
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.policy_measures import PolicyRow, policy_rows
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import (
    POLICY,
    SCORES,
    EvaluationRecord,
    MetricEstimate,
    ModelRecord,
    content_digest,
    kept_rows,
    model_folder,
    write_jsonl,
)
from lit_align.evaluation.respond import EvaluationResponse, collect_responses, progress
from lit_align.evaluation.text_measures import text_metrics
from lit_align.evaluation.win_rates import comparison, length_agreement, length_controlled, outcome_metrics
from lit_align.models.generation import Sampling
from lit_align.statistics import pearson_correlation

START = "start"
"""Stands for the model that each policy was trained from."""
Load: TypeAlias = Callable[[str, str], LoadedModel]
"""From path and name to a model."""
Responses: TypeAlias = Sequence[EvaluationResponse]


@dataclass(frozen=True)
class ResponseSettings:
    """What is asked of every model.

    Args:
        seeds: of the responses; each gives one to every prompt.
        sampling: length, temperature and top-p.
        batch_size: responses that are sampled at once.
        resamples: draws of the bootstrap.

    Raises:
        ValueError: a seed is named twice, or several have no effect.
    """

    seeds: tuple[int, ...] = (0,)
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=256))
    batch_size: int = 32
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; expected one or more, none twice")
        if self.sampling.temperature == 0 and len(self.seeds) > 1:
            raise ValueError("with temperature 0 every seed gives the same response; expected one seed")

    @property
    def described(self) -> dict[str, Any]:
        """The settings as ``evaluation.json`` shows them."""
        sampling = asdict(self.sampling)
        del sampling["seed"]
        return {"seeds": list(self.seeds), "sampling": sampling}


@dataclass
class Collected:
    """What is known of one model: its responses, and numbers along them."""

    name: str
    path: str
    responses: Responses
    policy: list[PolicyRow] = field(default_factory=list)
    reference: str | None = None

    def cells(self, values: Sequence[float]) -> PromptCells:
        """Arrange a number of each response by prompt and seed."""
        rows = zip(self.responses, values, strict=True)
        return as_cells([(response.index, response.seed, value) for response, value in rows])

    @property
    def texts(self) -> NDArray[np.object_]:
        """The responses by prompt and seed."""
        shape = self.cells([0.0] * len(self.responses)).shape
        texts = [response.response for response in sorted(self.responses, key=lambda response: response.key)]
        return np.array(texts, dtype=object).reshape(shape)

    @property
    def strings(self) -> list[str]:
        """The responses in their order."""
        return [response.response for response in self.responses]

    @property
    def characters(self) -> list[float]:
        """Lengths of the responses in characters, as AlpacaEval measures them."""
        return [float(len(response.response)) for response in self.responses]


def collect(
    evaluated: LoadedModel,
    prompts: Sequence[EvaluationPrompt],
    settings: ResponseSettings,
    folder: Path,
    reference: LoadedModel | None = None,
) -> Collected:
    """Sample responses of a model, and compute entropy and divergence along them.

    Args:
        evaluated: the model.
        prompts: the prompts.
        settings: seeds and sampling.
        folder: of the model's rows.
        reference: the model that it is compared with in divergence; None for none.

    Raises:
        ValueError: the reference has other tokens.
    """
    responses = collect_responses(evaluated, prompts, settings.seeds, settings.sampling, folder, settings.batch_size)
    check_same_tokens(evaluated, reference)
    depends_on = {
        "responses": content_digest([[*row.key, row.prompt_ids, row.ids] for row in responses]),
        "model": evaluated.identity,
        "reference": None if reference is None else reference.identity,
    }

    def compute() -> list[dict[str, Any]]:
        rows = along_responses(evaluated, reference, responses, settings.batch_size)
        return [_policy_record(response, row) for response, row in zip(responses, rows, strict=True)]

    kept = kept_rows(folder / POLICY, depends_on, compute)
    rows = [PolicyRow(row["entropy"], row["log_prob"], row.get("kl")) for row in kept]
    return Collected(evaluated.name, evaluated.path, responses, rows, None if reference is None else reference.path)


def check_same_tokens(evaluated: LoadedModel, reference: LoadedModel | None) -> None:
    """Raise unless two models have the same vocabulary."""
    if reference is None:
        return
    ours, theirs = evaluated.encoder.tokenizer.get_vocab(), reference.encoder.tokenizer.get_vocab()
    if ours != theirs:
        raise ValueError(
            f"{reference.path} has other tokens than {evaluated.path}, so there is no divergence between them; "
            "expected the model that it was trained from (reference), or none"
        )


def along_responses(
    evaluated: LoadedModel, reference: LoadedModel | None, responses: Responses, batch_size: int
) -> list[PolicyRow]:
    """Compute entropy, and divergence from a reference, along the responses of a model."""
    frozen: nn.Module | None = None if reference is None else reference.model
    rows: list[PolicyRow] = []
    with progress(f"{evaluated.name}: entropy and divergence", len(responses)) as advance:
        for start in range(0, len(responses), batch_size):
            part = [(row.prompt_ids, row.ids) for row in responses[start : start + batch_size]]
            rows += policy_rows(evaluated.model, frozen, part, max(1, batch_size // 4))
            advance(len(part))
    return rows


def _policy_record(response: EvaluationResponse, row: PolicyRow) -> dict[str, Any]:
    values = {name: value for name, value in asdict(row).items() if value is not None}
    return {"index": response.index, "seed": response.seed, **values}


def own_metrics(collected: Collected, resamples: int) -> dict[str, MetricEstimate]:
    """Return the numbers of a model that need no judge."""
    tokens = collected.cells([float(response.tokens) for response in collected.responses])
    ended = collected.cells([float(response.ended) for response in collected.responses])
    metrics = text_metrics(collected.texts, tokens, ended, resamples)
    if collected.policy:
        metrics["entropy"] = bootstrap_mean(collected.cells([row.entropy for row in collected.policy]), resamples)
    divergences = [row.kl for row in collected.policy if row.kl is not None]
    if divergences:
        kl = collected.cells(divergences)
        metrics["kl"] = bootstrap_mean(kl, resamples)
        metrics["kl_per_token"] = bootstrap(
            np.stack([kl, tokens], axis=-1), lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()), resamples
        )
    return metrics


@dataclass
class JudgedResponses:
    """What a judge makes of one model's responses: scores, comparisons with the baseline, or both."""

    scores: list[float] | None = None
    baseline_scores: list[float] | None = None
    comparisons: list[float] | None = None


def judge_models(
    judge: Judge, prompts: Mapping[int, EvaluationPrompt], models: Mapping[str, Collected], baseline: str | None
) -> dict[str, JudgedResponses]:
    """Judge the responses of all models.

    Args:
        judge: scores or compares.
        prompts: by index.
        models: by name; all have responded to the same prompts with the same seeds.
        baseline: name of the model that the others are compared with; None for none.
    """
    asked = {name: [prompts[response.index] for response in model.responses] for name, model in models.items()}
    judged = {name: JudgedResponses() for name in models}
    if judge.scores_alone:
        for name, model in models.items():
            judged[name].scores = judge.scores(asked[name], model.strings)
    if baseline is None:
        return judged
    for name in (name for name in models if name != baseline):
        ours, theirs = judged[name], judged[baseline].scores
        if ours.scores is not None and theirs is not None:
            ours.baseline_scores = theirs
            ours.comparisons = [comparison(*pair, judge.margin) for pair in zip(ours.scores, theirs, strict=True)]
        else:
            ours.comparisons = judge.comparisons(asked[name], models[name].strings, models[baseline].strings)
    return judged


def judged_metrics(
    ours: Collected, baseline: Collected | None, judged: JudgedResponses, resamples: int
) -> dict[str, MetricEstimate]:
    """Return the numbers of a model that a judge gives, but for the length-controlled win rate."""
    metrics: dict[str, MetricEstimate] = {}
    if judged.scores is not None:
        scores = ours.cells(judged.scores)
        metrics["score"] = bootstrap_mean(scores, resamples)
        correlation = rank_correlation(scores, ours.cells(ours.characters), resamples)
        metrics |= {} if correlation is None else {"score/length_correlation": correlation}
    if judged.baseline_scores is not None and judged.scores is not None:
        gain = ours.cells(judged.scores) - ours.cells(judged.baseline_scores)
        metrics["score/gain"] = bootstrap_mean(gain, resamples)
    if judged.comparisons is not None and baseline is not None:
        comparisons = ours.cells(judged.comparisons)
        metrics |= outcome_metrics(comparisons, resamples)
        agreement = length_agreement(comparisons, longer_than(ours, baseline), resamples)
        metrics |= {} if agreement is None else {"judge_prefers_longer": agreement}
    return metrics


def longer_than(ours: Collected, baseline: Collected) -> PromptCells:
    """Return by how many characters responses are longer than the baseline's, [prompt, seed]."""
    return ours.cells(ours.characters) - baseline.cells(baseline.characters)


def rank_correlation(first: PromptCells, second: PromptCells, resamples: int) -> MetricEstimate | None:
    """Return Spearman's rank correlation with its interval; None where one of both is constant."""

    def correlation(rows: PromptCells) -> float:
        return pearson_correlation(*(rankdata(rows[:, column]) for column in (0, 1))) or 0.0

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return bootstrap(np.stack([first, second], axis=-1), correlation, resamples)


@dataclass(frozen=True)
class PromptEvaluation:
    """An evaluation on prompts: which models, compared by whom with what.

    Args:
        paths: of the models, by name; the baseline is among them.
        load: loads one of them; one is in memory at a time, beside a reference.
        baseline: name of the model that the others are compared with; None for none.
        reference: path of the model for the divergence; ``start`` for the model that each was trained from, None for
            none.
        judge: None for none.
        settings: seeds and sampling.
        described: further settings, as ``evaluation.json`` shows them.
    """

    paths: Mapping[str, str]
    load: Load
    baseline: str | None = None
    reference: str | None = START
    judge: Judge | None = None
    settings: ResponseSettings = field(default_factory=ResponseSettings)
    described: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompts: Sequence[EvaluationPrompt], folder: Path) -> EvaluationRecord:
        """Evaluate the models, and write their rows; ``write_evaluation`` writes the numbers.

        Args:
            prompts: the prompts.
            folder: of the evaluation.
        """
        collected = {name: self._collect(name, prompts, folder) for name in self.paths}
        baseline = collected.get(self.baseline or "")
        by_index = {prompt.index: prompt for prompt in prompts}
        resamples = self.settings.resamples
        metrics = {name: own_metrics(model, resamples) for name, model in collected.items()}
        judged = {} if self.judge is None else judge_models(self.judge, by_index, collected, self.baseline)
        compared: dict[str, PromptCells] = {}
        for name, judgement in judged.items():
            model = collected[name]
            write_jsonl(model_folder(folder, name) / SCORES, list(score_records(model, judgement)))
            metrics[name] |= judged_metrics(model, baseline, judgement, resamples)
            if judgement.comparisons is not None:
                compared[name] = model.cells(judgement.comparisons)
        notes = [] if self.judge is None else self.judge.notes()
        if baseline is not None and compared:
            longer = {name: longer_than(collected[name], baseline) for name in compared}
            controlled, overlap_notes = length_controlled(compared, longer)
            notes += overlap_notes
            for name, number in controlled.items():
                metrics[name]["win_rate/length_controlled"] = number
        models = [self._record(model, metrics[name], folder) for name, model in collected.items()]
        return EvaluationRecord(tuple(models), self.baseline, tuple(notes))

    def _collect(self, name: str, prompts: Sequence[EvaluationPrompt], folder: Path) -> Collected:
        evaluated = self.load(self.paths[name], name)
        path = evaluated.reference if self.reference == START else self.reference
        reference = None if path is None or path == evaluated.path else self.load(path, f"{name} (reference)")
        return collect(evaluated, prompts, self.settings, model_folder(folder, name), reference)

    def _record(self, model: Collected, metrics: dict[str, MetricEstimate], folder: Path) -> ModelRecord:
        settings = {
            **self.described,
            **self.settings.described,
            "judge": None if self.judge is None else self.judge.description,
            "baseline": None if self.baseline is None else self.paths[self.baseline],
            "reference": model.reference,
            "versions": versions(),
        }
        return ModelRecord(model.name, model.path, settings, metrics, model_folder(folder, model.name))


def score_records(model: Collected, judged: JudgedResponses) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``scores.jsonl``."""
    columns = {
        "score": judged.scores,
        "baseline_score": judged.baseline_scores,
        "comparison": judged.comparisons,
    }
    for place, response in enumerate(model.responses):
        values = {name: column[place] for name, column in columns.items() if column is not None}
        yield {"index": response.index, "seed": response.seed, **values}


def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    return {"lit_align": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
