"""Judging the responses of several models, with judgements kept until all are there, and the numbers on them."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from lit_align.evaluation.intervals import PromptCells, as_cells, bootstrap, bootstrap_mean
from lit_align.evaluation.judges import Judge
from lit_align.evaluation.policy_measures import PolicyRow
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import (
    UNFINISHED,
    MetricEstimate,
    RowFile,
    append_jsonl,
    content_digest,
    drop_cut_line,
    read_jsonl,
)
from lit_align.evaluation.respond import EvaluationResponse, progress
from lit_align.evaluation.win_rates import comparison, length_agreement, outcome_metrics
from lit_align.statistics import pearson_correlation

Responses: TypeAlias = Sequence[EvaluationResponse]


@dataclass
class Collected:
    """What is known of one model: its responses, and numbers along them."""

    name: str
    path: str
    responses: Responses
    policy: list[PolicyRow] = field(default_factory=list)
    reference: str | None = None
    weights: str = ""

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


class KeptJudge:
    """Asks a judge for some judgements at a time, and keeps them on disk until the evaluation has finished.

    Args:
        judge: scores or compares.
        folder: for the judgements; None keeps none, and asks for all at once.
    """

    def __init__(self, judge: Judge, folder: Path | None = None) -> None:
        self.judge = judge
        self._file: RowFile | None = None
        if folder is not None and not judge.keeps_answers:
            self._file = RowFile(folder / "judgements.jsonl", judge.identity)

    def __call__(self, name: str, prompts: Sequence[EvaluationPrompt], *texts: Sequence[str]) -> list[float]:
        """Return the judge's scores of responses, or its comparisons where there are the baseline's as well."""
        if self._file is None:
            return self._ask(prompts, *texts)
        keys = [content_digest([prompt.text, *own]) for prompt, *own in zip(prompts, *texts, strict=True)]
        known = {row["of"]: row["value"] for row in self._file.rows}
        missing = [place for place in self.judge.order(prompts, texts[0]) if keys[place] not in known]
        with progress(f"{name}: judgements", len(keys), len(keys) - len(missing)) as advance:
            for start in range(0, len(missing), self.judge.at_once):
                places = missing[start : start + self.judge.at_once]
                own = ([column[place] for place in places] for column in texts)
                values = self._ask([prompts[place] for place in places], *own)
                rows = {keys[place]: value for place, value in zip(places, values, strict=True)}
                self._file.add({"of": key, "value": value} for key, value in rows.items())
                known |= rows
                advance(len(places))
        return [known[key] for key in keys]

    def _ask(self, prompts: Sequence[EvaluationPrompt], *texts: Sequence[str]) -> list[float]:
        return (self.judge.scores if len(texts) == 1 else self.judge.comparisons)(prompts, *texts)


@dataclass(frozen=True)
class Question:
    """Everything that an answer depends on."""

    model: str
    endpoint: str
    text: str
    options: str

    @property
    def digest(self) -> str:
        """A key for the cache."""
        parts = "\0".join((self.model, self.endpoint, self.text, self.options))
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class AnswerCache:
    """Answers of a judge by question, kept in a file of JSON lines.

    Args:
        path: of the file; None keeps them in memory alone.
    """

    path: Path | None
    _answers: dict[str, str] = field(default_factory=dict, init=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is not None:
            drop_cut_line(self.path)
            self._answers = {str(row["question"]): str(row["answer"]) for row in read_jsonl(self.path)}

    def get(self, question: Question) -> str | None:
        """Return the answer to a question; None if it has not been asked."""
        return self._answers.get(question.digest)

    def put(self, question: Question, answer: str) -> None:
        """Keep an answer."""
        with self._lock:
            self._answers[question.digest] = answer
            if self.path is not None:
                append_jsonl(self.path, [{"question": question.digest, "model": question.model, "answer": answer}])


def drop_unfinished(folder: Path) -> None:
    """Remove the judgements that were kept for an evaluation that has finished now."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


@dataclass
class JudgedResponses:
    """What a judge makes of one model's responses: scores, comparisons with the baseline, or both."""

    scores: list[float] | None = None
    baseline_scores: list[float] | None = None
    comparisons: list[float] | None = None


def judge_models(
    judge: KeptJudge, prompts: Mapping[int, EvaluationPrompt], models: Mapping[str, Collected], baseline: str | None
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
    if judge.judge.scores_alone:
        for name, model in models.items():
            judged[name].scores = judge(name, asked[name], model.strings)
    if baseline is None:
        return judged
    for name in (name for name in models if name != baseline):
        ours, theirs = judged[name], judged[baseline].scores
        if ours.scores is not None and theirs is not None:
            ours.baseline_scores = theirs
            ours.comparisons = [
                comparison(*pair, judge.judge.margin) for pair in zip(ours.scores, theirs, strict=True)
            ]
        else:
            ours.comparisons = judge(name, asked[name], models[name].strings, models[baseline].strings)
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


def score_records(model: Collected, judged: JudgedResponses) -> Iterator[dict[str, Any]]:
    """Yield the rows of the file with the judgements of a judge."""
    columns = {"score": judged.scores, "baseline_score": judged.baseline_scores, "comparison": judged.comparisons}
    for place, response in enumerate(model.responses):
        values = {name: column[place] for name, column in columns.items() if column is not None}
        yield {"index": response.index, "seed": response.seed, "characters": len(response.response), **values}
