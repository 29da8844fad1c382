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
from lit_align.evaluation.intervals import resamples
from lit_align.evaluation.judges import FunctionJudge, Judge, PairwiseFunction, make_judge
from lit_align.evaluation.models import LoadedModel, model_names
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import EvaluationRecord, read_evaluation, read_jsonl, write_evaluation
from lit_align.models.sampling import Sampling
from lit_align.testbed.truth import true_score
from tests.evaluation import by_hand

pytestmark = pytest.mark.slow

Rows = Sequence[dict[str, float]]
Statistic = Callable[[Rows], float]
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


def test_every_number_and_its_interval_can_be_computed_from_the_rows(
    evaluated: tuple[EvaluationRecord, Path],
) -> None:
    """Intervals by loops over draws of prompts and seeds, which take a prompt's rows of both models together."""
    record, folder = evaluated
    other, policy = record.models
    places = {(row["index"], row["seed"]): row for row in other.responses()}
    theirs = {(row["index"], row["seed"]): row for row in policy.responses()}
    along = {(row["index"], row["seed"]): row for row in read_jsonl(folder / "models/other/policy.jsonl")}
    table = [_row(places[key], theirs[key], along[key]) for key in sorted(places)]
    prompts, seeds = resamples(6, 2, 100)
    draws = [
        [table[2 * prompt + seed] for prompt in drawn for seed in own]
        for drawn, own in zip(prompts, seeds, strict=True)
    ]
    for name, statistic in STATISTICS.items():
        number = other.metrics[name]
        assert number.value == pytest.approx(statistic(table)), name
        assert (number.low, number.high) == pytest.approx(by_hand.interval(statistic, draws)), name
        assert number.n == 12
    assert other.metrics["kl"].value > 0
    assert "kl" not in policy.metrics
    assert "win_rate" not in policy.metrics
    assert policy.metrics["score"].value == pytest.approx(np.mean([row["base"] for row in table]))


def test_the_length_controlled_win_rate_is_that_of_the_rows(evaluated: tuple[EvaluationRecord, Path]) -> None:
    record, _ = evaluated
    rows = record.models[0].scores()
    base = {(row["index"], row["seed"]): row["characters"] for row in record.models[1].scores()}
    longer = np.array([float(row["characters"] - base[row["index"], row["seed"]]) for row in rows])
    expected = by_hand.win_rate(by_hand.length_term(longer), np.array([row["comparison"] for row in rows]))
    assert record.models[0].metrics["win_rate/length_controlled"].value == pytest.approx(expected, abs=1e-3)


def _row(ours: dict[str, Any], theirs: dict[str, Any], along: dict[str, Any]) -> dict[str, float]:
    """Return what is known of a response and of the baseline's, counted anew from their texts."""
    score, base = (true_score(row["prompt"], row["response"]) for row in (ours, theirs))
    words = ours["response"].lower().split()
    triples = list(zip(words, words[1:], words[2:], strict=False))
    pairs = list(zip(words, words[1:], strict=False))
    return {
        "score": score,
        "base": base,
        "won": float(score > base) + 0.5 * float(score == base),
        "characters": len(ours["response"]),
        "longer": len(ours["response"]) - len(theirs["response"]),
        "tokens": len(ours["ids"]),
        "words": len(words),
        "ended": ours["ended"],
        "repetition": 1 - len(set(triples)) / len(triples) if triples else 0.0,
        "distinct_1": len(set(words)) / len(words) if words else 1.0,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "kl": along["kl"],
        "entropy": along["entropy"],
    }


def _mean(key: str) -> Statistic:
    return lambda rows: float(np.mean([row[key] for row in rows]))


def _percentile(key: str, percentile: int) -> Statistic:
    return lambda rows: float(np.percentile([row[key] for row in rows], percentile))


def _share(of: Callable[[float], bool]) -> Statistic:
    return lambda rows: sum(of(row["won"]) for row in rows) / len(rows)


def _prefers_longer(rows: Rows) -> float:
    decided = [(row["won"] > 0.5) == (row["longer"] > 0) for row in rows if row["won"] != 0.5 and row["longer"]]
    return float(np.mean(decided)) if decided else 0.5


def _follows_length(rows: Rows) -> float:
    correlation = spearmanr([row["score"] for row in rows], [row["characters"] for row in rows])[0]
    return 0.0 if np.isnan(correlation) else float(correlation)


STATISTICS: dict[str, Statistic] = {
    "score": _mean("score"),
    "score/gain": lambda rows: float(np.mean([row["score"] - row["base"] for row in rows])),
    "score/length_correlation": _follows_length,
    "win_rate": _mean("won"),
    "win_rate/win": _share(lambda won: won == 1),
    "win_rate/tie": _share(lambda won: won == 0.5),
    "win_rate/lose": _share(lambda won: won == 0),
    "judge_prefers_longer": _prefers_longer,
    **{f"length/{key}": _mean(key) for key in ("tokens", "words")},
    **{f"length/{key}/p{p}": _percentile(key, p) for key in ("tokens", "words") for p in (10, 50, 90)},
    **{key: _mean(key) for key in ("ended", "repetition", "distinct_1", "distinct_2", "entropy", "kl")},
    "kl_per_token": lambda rows: sum(row["kl"] for row in rows) / sum(row["tokens"] for row in rows),
}


def test_no_number_is_without_a_computation_of_its_own(evaluated: tuple[EvaluationRecord, Path]) -> None:
    """Those over all texts together, and the length-controlled win rate, have tests of their own."""
    elsewhere = {"distinct_1/corpus", "distinct_2/corpus", "win_rate/length_controlled"}
    assert set(evaluated[0].models[0].metrics) == set(STATISTICS) | elsewhere


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
