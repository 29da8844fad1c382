"""The evaluation of models: responses, judgements, and numbers with intervals, written as an ``EvaluationRecord``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import transformers
from torch import nn

from lit_align import __version__
from lit_align.evaluation.client import Endpoint
from lit_align.evaluation.intervals import RESAMPLES, bootstrap, bootstrap_mean
from lit_align.evaluation.join import control_lengths
from lit_align.evaluation.judges import Judge
from lit_align.evaluation.judging import Collected, KeptJudge, Responses, judge_models, judged_metrics, score_records
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.policy_measures import PolicyRow, policy_rows
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import (
    POLICY,
    UNFINISHED,
    EvaluationRecord,
    MetricEstimate,
    ModelRecord,
    RowFile,
    content_digest,
    judged_name,
    locked,
    model_folder,
    scores_file,
    write_jsonl,
)
from lit_align.evaluation.remote import REMOTE, remote_identity, responses_from_endpoint
from lit_align.evaluation.respond import EvaluationResponse, collect_responses, progress
from lit_align.evaluation.text_measures import text_metrics
from lit_align.models.sampling import Sampling

START = "start"
"""Stands for the model that each policy was trained from."""
Load: TypeAlias = Callable[[str, str], LoadedModel]
"""From path and name to a model."""


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


def collect(
    evaluated: LoadedModel,
    prompts: Sequence[EvaluationPrompt],
    settings: ResponseSettings,
    folder: Path,
    reference: LoadedModel | None = None,
) -> Collected:
    """Sample responses of a model, and compute entropy and divergence along them.

    Raises:
        ValueError: the reference has other tokens.
    """
    responses = collect_responses(evaluated, prompts, settings.seeds, settings.sampling, folder, settings.batch_size)
    check_same_tokens(evaluated, reference)
    depends_on = {"model": evaluated.identity, "reference": None if reference is None else reference.identity}
    file = RowFile(folder / POLICY, depends_on)
    texts = [content_digest([row.prompt_ids, row.ids]) for row in responses]
    known = {row["of"] for row in file.rows}
    missing = [(row, text) for row, text in zip(responses, texts, strict=True) if text not in known]
    of = {row.key: text for row, text in missing}

    def keep(part: Responses, rows: Sequence[PolicyRow]) -> None:
        file.add(_policy_record(response, row, of[response.key]) for response, row in zip(part, rows, strict=True))

    if missing:
        along_responses(evaluated, reference, [row for row, _ in missing], settings.batch_size, keep)
    by_text = {row["of"]: PolicyRow(row["entropy"], row["log_prob"], row.get("kl")) for row in file.rows}
    rows = [by_text[text] for text in texts]
    path = None if reference is None else reference.path
    return Collected(evaluated.name, evaluated.path, responses, rows, path, content_digest(evaluated.identity))


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
    evaluated: LoadedModel,
    reference: LoadedModel | None,
    responses: Responses,
    batch_size: int,
    keep: Callable[[Responses, Sequence[PolicyRow]], None] | None = None,
) -> list[PolicyRow]:
    """Compute entropy, and divergence from a reference, along the responses of a model.

    Args:
        evaluated: the model.
        reference: the model that it is compared with; None for none.
        responses: of the model.
        batch_size: four times the responses per forward pass.
        keep: is called with some responses and their rows as they come; None for nothing.
    """
    frozen: nn.Module | None = None if reference is None else reference.model
    rows: list[PolicyRow] = []
    with progress(f"{evaluated.name}: entropy and divergence", len(responses)) as advance:
        for start in range(0, len(responses), batch_size):
            part = responses[start : start + batch_size]
            sequences = [(row.prompt_ids, row.ids) for row in part]
            rows += policy_rows(evaluated.model, frozen, sequences, max(1, batch_size // 4))
            if keep is not None:
                keep(part, rows[start:])
            advance(len(part))
    return rows


def _policy_record(response: EvaluationResponse, row: PolicyRow, of: str) -> dict[str, Any]:
    values = {name: value for name, value in asdict(row).items() if value is not None}
    return {"index": response.index, "seed": response.seed, "of": of, **values}


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


@dataclass(frozen=True)
class PromptEvaluation:
    """An evaluation on prompts: which models, compared by whom with what.

    Args:
        paths: of the models, by name; the baseline is among them.
        load: loads one of them; one is in memory at a time, beside a reference.
        baseline: name of the model that the others are compared with; None for none.
        reference: path of the model for the divergence; ``start`` for the model that each was trained from, None for
            none.
        judges: by name; the numbers of one without a name have plain names, those of others ``judges/NAME/...``.
        settings: seeds and sampling.
        described: further settings, as ``evaluation.json`` shows them.
        endpoint: of the models whose path begins with ``openai:``.
    """

    paths: Mapping[str, str]
    load: Load
    baseline: str | None = None
    reference: str | None = START
    judges: Mapping[str, Judge] = field(default_factory=dict)
    settings: ResponseSettings = field(default_factory=ResponseSettings)
    described: Mapping[str, Any] = field(default_factory=dict)
    endpoint: Endpoint = field(default_factory=Endpoint)

    def __call__(self, prompts: Sequence[EvaluationPrompt], folder: Path) -> EvaluationRecord:
        """Evaluate the models, and write their rows; ``join_evaluation`` writes the numbers."""
        collected = {name: self._collect(name, prompts, folder) for name in self.paths}
        metrics = {name: own_metrics(model, self.settings.resamples) for name, model in collected.items()}
        notes: list[str] = []
        for name, judge in self.judges.items():
            for model, numbers in self._judge(name, judge, prompts, collected, folder).items():
                metrics[model] |= numbers
            notes += judge.notes()
        models = [self._record(model, metrics[name], folder) for name, model in collected.items()]
        return control_lengths(EvaluationRecord(tuple(models), self.baseline, tuple(notes)))

    def _judge(
        self,
        name: str,
        judge: Judge,
        prompts: Sequence[EvaluationPrompt],
        collected: Mapping[str, Collected],
        folder: Path,
    ) -> dict[str, dict[str, MetricEstimate]]:
        """Let a judge judge, write its rows, and return the numbers of each model."""
        by_index = {prompt.index: prompt for prompt in prompts}
        judged = judge_models(
            KeptJudge(judge, folder / UNFINISHED / (name or "judge")), by_index, collected, self.baseline
        )
        baseline = collected.get(self.baseline or "")
        metrics: dict[str, dict[str, MetricEstimate]] = {}
        for key, judgement in judged.items():
            model = collected[key]
            write_jsonl(model_folder(folder, key) / scores_file(name), score_records(model, judgement))
            numbers = judged_metrics(model, baseline, judgement, self.settings.resamples)
            metrics[key] = {judged_name(name, metric): number for metric, number in numbers.items()}
        return metrics

    def _collect(self, name: str, prompts: Sequence[EvaluationPrompt], folder: Path) -> Collected:
        own = self.paths[name]
        if own.startswith(REMOTE):
            sampling, into = self.settings.sampling, model_folder(folder, name)
            with locked(into):
                responses = responses_from_endpoint(own, self.endpoint, prompts, self.settings.seeds, sampling, into)
            weights = content_digest(remote_identity(own, self.endpoint))
            return Collected(name, own, responses, weights=weights)
        evaluated = self.load(own, name)
        path = evaluated.reference if self.reference == START else self.reference
        reference = None if path is None or path == evaluated.path else self.load(path, f"{name} (reference)")
        with locked(model_folder(folder, name)):
            return collect(evaluated, prompts, self.settings, model_folder(folder, name), reference)

    def _record(self, model: Collected, metrics: dict[str, MetricEstimate], folder: Path) -> ModelRecord:
        descriptions = {name: judge.description for name, judge in self.judges.items()}
        settings = {
            **self.described,
            **self.settings.described,
            "judge": descriptions.pop("", None),
            "judges": descriptions,
            "baseline": None if self.baseline is None else self.paths[self.baseline],
            "reference": model.reference,
            "weights": model.weights,
            "versions": versions(),
        }
        return ModelRecord(model.name, model.path, settings, metrics, model_folder(folder, model.name))


def versions() -> dict[str, str]:
    """Return the versions that numbers may depend on."""
    return {"lit_align": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
