from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lit_align.evaluation import evaluate as evaluate_module
from lit_align.evaluation import respond
from lit_align.evaluation.evaluate import PromptEvaluation, ResponseSettings, check_same_tokens
from lit_align.evaluation.judges import FunctionJudge, Judge, PairwiseFunction, make_judge
from lit_align.evaluation.models import LoadedModel, model_names
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import EvaluationRecord, read_evaluation, read_jsonl, write_evaluation
from lit_align.models.generation import Sampling
from lit_align.testbed.truth import true_score

SETTINGS = ResponseSettings((0, 1), Sampling(max_new_tokens=12), batch_size=12, resamples=100)
Prompts = list[EvaluationPrompt]


@pytest.fixture(scope="module")
def other_model(testbed_model: LoadedModel) -> LoadedModel:
    model = copy.deepcopy(testbed_model.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=weight.dtype)
    return replace(testbed_model, name="other", path="other", model=model, identity={"noise": 2}, reference="policy")


@pytest.fixture(scope="module")
def evaluation(testbed_model: LoadedModel, other_model: LoadedModel) -> PromptEvaluation:
    known = {"policy": replace(testbed_model, path="policy"), "other": other_model}
    paths = {"other": "other", "policy": "policy"}
    return PromptEvaluation(
        paths, lambda path, name: known[path], "policy", "start", {"": make_judge("testbed")}, SETTINGS
    )


@pytest.fixture(scope="module")
def evaluated(
    evaluation: PromptEvaluation, testbed_prompts: Prompts, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluationRecord, Path]:
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluation(testbed_prompts, folder), folder


def test_every_number_can_be_computed_from_the_rows(evaluated: tuple[EvaluationRecord, Path]) -> None:
    record, folder = evaluated
    other, policy = record.models
    ours, theirs = other.responses(), policy.responses()
    mine = [true_score(row["prompt"], row["response"]) for row in ours]
    base = [true_score(row["prompt"], row["response"]) for row in theirs]
    wins = [float(a > b) + 0.5 * float(a == b) for a, b in zip(mine, base, strict=True)]
    lengths = [len(row["response"]) for row in ours]
    rows = list(read_jsonl(folder / "models/other/policy.jsonl"))
    longer = [a - len(row["response"]) for a, row in zip(lengths, theirs, strict=True)]
    decided = [(w > 0.5) == (d > 0) for w, d in zip(wins, longer, strict=True) if w != 0.5 and d]
    expected = {
        "score": np.mean(mine),
        "score/gain": np.mean(mine) - np.mean(base),
        "score/length_correlation": spearmanr(mine, lengths)[0],
        "win_rate": np.mean(wins),
        "win_rate/tie": np.mean([win == 0.5 for win in wins]),
        "judge_prefers_longer": np.mean(decided),
        "length/tokens": np.mean([len(row["ids"]) for row in ours]),
        "ended": np.mean([row["ended"] for row in ours]),
        "kl": np.mean([row["kl"] for row in rows]),
        "kl_per_token": sum(row["kl"] for row in rows) / sum(row["tokens"] for row in ours),
        "entropy": np.mean([row["entropy"] for row in rows]),
    }
    for name, value in expected.items():
        assert other.metrics[name].value == pytest.approx(value), name
        assert other.metrics[name].n == 12
    assert other.metrics["kl"].value > 0
    assert "kl" not in policy.metrics
    assert "win_rate" not in policy.metrics
    assert policy.metrics["score"].value == pytest.approx(np.mean(base))
    assert "win_rate/length_controlled" in other.metrics


def test_settings_and_scores_are_written(evaluated: tuple[EvaluationRecord, Path]) -> None:
    record, folder = evaluated
    write_evaluation(folder, record)
    read = read_evaluation(folder)
    assert read == record
    settings = read.models[0].settings
    assert settings["seeds"] == [0, 1]
    assert settings["sampling"]["max_new_tokens"] == 12
    assert settings["judge"] == {"kind": "scores", "name": "testbed", "margin": 0.0}
    assert settings["baseline"] == settings["reference"] == "policy"
    assert set(settings["versions"]) == {"lit_align", "torch", "transformers"}
    row, base = read.models[0].scores()[3], read.models[1].scores()[3]
    assert row["baseline_score"] == base["score"]
    assert "comparison" not in base
    assert json.dumps(row)


def test_evaluating_again_gives_the_same_record(
    evaluation: PromptEvaluation, evaluated: tuple[EvaluationRecord, Path], testbed_prompts: Prompts
) -> None:
    record, folder = evaluated
    assert evaluation(testbed_prompts, folder) == record


class Interrupting:
    """A judge of the words of responses that is interrupted once, and counts what it is asked."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, 0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        self.asked += 1
        if self.asked == self.after:
            raise KeyboardInterrupt
        return [float(len(response.split())) for response in responses]


@pytest.mark.parametrize(
    "stage",
    [pytest.param("responses", marks=pytest.mark.long), pytest.param("divergence", marks=pytest.mark.long), "judge"],
)
def test_an_interrupted_evaluation_goes_on_where_it_was(
    stage: str,
    evaluation: PromptEvaluation,
    testbed_prompts: Prompts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same record as without an interruption, and nothing that was on disk is computed again."""
    judge = Interrupting(0)
    settings = replace(SETTINGS, batch_size=5)
    own = replace(evaluation, judges={"": FunctionJudge(judge, "words")}, settings=settings)
    monkeypatch.setattr(Judge, "at_once", 5)
    calls = {"responses": 0, "divergence": 0}
    functions = {"responses": (respond, "generate_responses"), "divergence": (evaluate_module, "policy_rows")}

    def counted(name: str, after: int) -> Callable[..., Any]:
        function = getattr(*functions[name])

        def call(*rest: Any) -> Any:
            calls[name] += 1
            if calls[name] == after:
                raise KeyboardInterrupt
            return function(*rest)

        return call

    whole = own(testbed_prompts, tmp_path / "whole")
    asked, judge.asked = judge.asked, 0
    for name, place in functions.items():
        monkeypatch.setattr(*place, counted(name, 4 if name == stage else 0))
    judge.after = 4 if stage == "judge" else 0
    with pytest.raises(KeyboardInterrupt):
        own(testbed_prompts, tmp_path / "parts")
    parts = own(testbed_prompts, tmp_path / "parts")
    assert [model.metrics for model in parts.models] == [model.metrics for model in whole.models]
    interrupted = {"responses": 0, "divergence": 0, "judge": 0} | {stage: 1}
    assert calls == {"responses": 6 + interrupted["responses"], "divergence": 6 + interrupted["divergence"]}
    assert judge.asked == asked + interrupted["judge"]
    for file in ("responses.jsonl", "policy.jsonl", "scores.jsonl"):
        both = [(tmp_path / name / "models" / "other" / file).read_text() for name in ("whole", "parts")]
        assert both[0] == both[1]


def test_a_pairwise_judge_sees_both_responses(
    evaluation: PromptEvaluation, evaluated: tuple[EvaluationRecord, Path], testbed_prompts: Prompts
) -> None:
    judge = PairwiseFunction(
        lambda prompts, ours, theirs: [float(len(a) > len(b)) for a, b in zip(ours, theirs, strict=True)], "long"
    )
    record = replace(evaluation, judges={"": judge})(testbed_prompts, evaluated[1])
    assert record.models[0].metrics["judge_prefers_longer"].value == 1
    assert "score" not in record.models[0].metrics


def test_a_reference_of_other_tokens_is_refused(testbed_model: LoadedModel) -> None:
    class Other:
        path = "elsewhere"
        encoder = type("Encoder", (), {"tokenizer": type("T", (), {"get_vocab": lambda self: {"a": 0}})()})()

    with pytest.raises(ValueError, match="elsewhere has other tokens"):
        check_same_tokens(testbed_model, Other())  # type: ignore[arg-type]


def test_seeds_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="none twice"):
        ResponseSettings((1, 1))
    with pytest.raises(ValueError, match="temperature 0"):
        ResponseSettings((0, 1), Sampling(temperature=0.0))


def test_names_are_short_and_different() -> None:
    assert model_names(["a/b/policy", "a/c/policy", "a/c/policy/"])[0] == "b-policy"
    assert len(set(model_names(["x", "./x", "/x"]))) == 3
