"""Evaluations that are joined are those of one command; what does not go together is left out and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_align.evaluation import join
from lit_align.evaluation.join import control_lengths, join_evaluation
from lit_align.evaluation.record import (
    EvaluationRecord,
    MetricEstimate,
    ModelRecord,
    judged_name,
    model_folder,
    read_evaluation,
    scores_file,
    write_jsonl,
)

PROMPTS = {"prompts": {"source": "p.jsonl", "count": 9}, "seeds": [0], "sampling": {"max_new_tokens": 8}}
NUMBER = MetricEstimate(0.5, 0.4, 0.6, 9)
TESTBED, LENGTH = {"name": "testbed"}, {"name": "length"}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "length_controlled", partial(join.length_controlled, count=3))


def model(folder: Path, name: str, judge: str = "", description: Any = None) -> ModelRecord:
    """Return the record of a model that a judge has compared with the baseline, and write its rows."""
    random = np.random.default_rng(sum(name.encode()))
    rows: list[dict[str, Any]] = [
        {
            "index": index,
            "seed": 0,
            "characters": int(random.integers(20, 60)),
            "comparison": float(random.random() < 0.6),
        }
        for index in range(40)
    ]
    if name == "base":
        rows = [{key: value for key, value in row.items() if key != "comparison"} for row in rows]
    write_jsonl(model_folder(folder, name) / scores_file(judge), rows)
    judged = {"judges": {judge: description}} if judge else {"judge": description or TESTBED}
    metrics = {"length/words": NUMBER, "kl": NUMBER, judged_name(judge, "score"): NUMBER}
    metrics |= {} if name == "base" else {judged_name(judge, "win_rate"): NUMBER}
    own = {**PROMPTS, "baseline": "base", "reference": "start", "weights": "w", **judged}
    return ModelRecord(name, f"runs/{name}", own, metrics, model_folder(folder, name))


def only(folder: Path, name: str, metrics: dict[str, MetricEstimate], **settings: Any) -> EvaluationRecord:
    record = ModelRecord(name, f"runs/{name}", {"weights": "w", **settings}, metrics, model_folder(folder, name))
    return EvaluationRecord((record,))


def numbers(folder: Path) -> dict[str, dict[str, float]]:
    return {m.name: {name: n.value for name, n in m.metrics.items()} for m in read_evaluation(folder).models}


def test_models_one_after_the_other_are_those_of_one_command(tmp_path: Path) -> None:
    """Also in the length-controlled win rates, which depend on all models together."""
    names = ("a", "b", "c", "d", "e")
    base = model(tmp_path, "base")
    models = [model(tmp_path, name) for name in names]
    at_once = control_lengths(EvaluationRecord((*models, base), "base"))
    for own in models:
        alone = control_lengths(EvaluationRecord((own, base), "base"))
        assert join_evaluation(tmp_path, alone)[1] == []
    joined = read_evaluation(tmp_path)
    assert [own.name for own in joined.models] == [*names, "base"]
    assert joined.baseline == "base"
    controlled = [
        {own.name: own.metrics.get("win_rate/length_controlled") for own in record.models}
        for record in (joined, at_once, control_lengths(EvaluationRecord((models[0], base), "base")))
    ]
    assert controlled[0] == controlled[1]
    assert controlled[0]["a"] != controlled[2]["a"], "alone it is another number"
    assert not (tmp_path / "previous").exists()


def test_tasks_pairs_and_judges_come_beside_what_is_there(tmp_path: Path) -> None:
    first = EvaluationRecord((model(tmp_path, "a"), model(tmp_path, "base")), "base", ("a: 3 of 9 pairs are longer",))
    join_evaluation(tmp_path, first)
    tasks = {"benchmark/arc/acc": NUMBER}
    join_evaluation(tmp_path, only(tmp_path, "a", tasks, tasks={"arc": {"fewshot": 0}}))
    join_evaluation(tmp_path, only(tmp_path, "a", {"benchmark/gsm/acc": NUMBER}, tasks={"gsm": {"fewshot": 5}}))
    further = (
        model(tmp_path, "a", "length", LENGTH),
        model(tmp_path, "base", "length", LENGTH),
    )
    _, reasons = join_evaluation(tmp_path, EvaluationRecord(further, "base"))
    assert reasons == []
    own, base = read_evaluation(tmp_path).models
    expected = {"length/words", "kl", "score", "win_rate", "benchmark/arc/acc"}
    expected |= {"benchmark/gsm/acc", "judges/length/score", "judges/length/win_rate"}
    assert set(own.metrics) == expected
    assert own.settings["judge"] == TESTBED
    assert own.settings["judges"] == {"length": LENGTH}
    assert own.settings["tasks"] == {"arc": {"fewshot": 0}, "gsm": {"fewshot": 5}}
    assert own.settings["sampling"] == PROMPTS["sampling"]
    assert set(base.metrics) == {"length/words", "kl", "score", "judges/length/score"}
    record = read_evaluation(tmp_path)
    assert record.baseline == "base"
    assert "a: 3 of 9 pairs are longer" in record.warnings


@pytest.mark.parametrize(
    ("change", "reason", "left"),
    [
        ({"sampling": {"max_new_tokens": 16}}, "sampling.max_new_tokens was 8 and is 16", {"pairs/accuracy/sum"}),
        (
            {"prompts": {"source": "q.jsonl", "count": 9}},
            "prompts.source was 'p.jsonl' and is 'q.jsonl'",
            {"pairs/accuracy/sum"},
        ),
        (
            {"judge": {"name": "testbed", "margin": 1}},
            "judge.margin was None and is 1",
            {"pairs/accuracy/sum", "length/words", "kl"},
        ),
        ({"baseline": "d"}, "the baseline is another one", {"pairs/accuracy/sum", "length/words", "kl"}),
    ],
)
def test_what_does_not_go_together_is_left_out_and_kept(
    change: dict[str, Any], reason: str, left: set[str], tmp_path: Path
) -> None:
    pairs = {"pairs/accuracy/sum": NUMBER}
    join_evaluation(tmp_path, EvaluationRecord((model(tmp_path, "a"), model(tmp_path, "base")), "base"))
    join_evaluation(tmp_path, only(tmp_path, "a", pairs, pairs={"source": "x"}))
    before = (tmp_path / "evaluation.json").read_bytes()
    settings = {key: value for key, value in change.items() if key != "baseline"}
    later = model(tmp_path, "b"), model(tmp_path, change.get("baseline", "base"))
    later = tuple(replace(own, settings={**own.settings, **settings}) for own in later)
    if "baseline" in change:
        later = (later[0], replace(later[1], metrics={"score": NUMBER}))
    _, reasons = join_evaluation(tmp_path, EvaluationRecord(later, later[1].name))
    assert reasons == [f"{reason}; the earlier numbers are in {tmp_path / 'previous/1/evaluation.json'}"]
    assert (tmp_path / "previous/1/evaluation.json").read_bytes() == before
    assert set(numbers(tmp_path)["a"]) == left
    assert "win_rate" in numbers(tmp_path)["b"]


def test_numbers_of_other_weights_are_left_out(tmp_path: Path) -> None:
    join_evaluation(tmp_path, EvaluationRecord((model(tmp_path, "a"), model(tmp_path, "base")), "base"))
    trained = only(tmp_path, "a", {"benchmark/arc/acc": NUMBER}, weights="more")
    _, (reason,) = join_evaluation(tmp_path, trained)
    assert reason.startswith("the weights of a have changed; ")
    assert set(numbers(tmp_path)["a"]) == {"benchmark/arc/acc"}
    assert "score" in numbers(tmp_path)["base"]


def test_pairs_that_are_too_long_for_one_model_are_no_difference(tmp_path: Path) -> None:
    for name, count in (("a", 9), ("b", 7)):
        number = {"pairs/accuracy/sum": NUMBER}
        _, reasons = join_evaluation(tmp_path, only(tmp_path, name, number, pairs={"source": "x", "count": count}))
        assert reasons == []
    assert set(numbers(tmp_path)) == {"a", "b"}
    assert json.loads((tmp_path / "evaluation.json").read_text())["models"][0]["settings"]["pairs"]["count"] == 9
