from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, pearsonr, spearmanr

from lit_align.errors import DataError
from lit_align.evaluation import preference_sets
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.preference_sets import PairMargin, kept_margins, pair_margins, pair_metrics, read_pairs
from lit_align.types import PreferencePair
from tests.evaluation.by_hand import interval, log_prob

pytestmark = pytest.mark.slow


def margin(index: int, value: float, lengths: tuple[int, int] = (5, 5), **more: object) -> PairMargin:
    return PairMargin(index, index, value, value / 10, *lengths, **more)  # type: ignore[arg-type]


def test_margins_are_differences_of_log_ratios(testbed_model: LoadedModel) -> None:
    pairs = read_pairs("testbed:test", limit=5)
    model = copy.deepcopy(testbed_model.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.05
    policy = replace(testbed_model, model=model)
    margins, notes = pair_margins(policy, testbed_model, pairs, batch_size=2)
    alone, _ = pair_margins(policy, None, pairs)
    assert notes == []
    for pair, tokenized, found, free in zip(pairs, policy.tokenize(pairs), margins, alone, strict=True):
        prompt, sides = list(tokenized.prompt), [list(side.ids) for side in tokenized.sides]
        ours = [log_prob(model, prompt, side) for side in sides]
        theirs = [log_prob(testbed_model.model, prompt, side) for side in sides]
        rewards = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert found.sum == pytest.approx(rewards[0] - rewards[1])
        assert found.mean == pytest.approx(rewards[0] / len(sides[0]) - rewards[1] / len(sides[1]))
        assert free.sum == pytest.approx(ours[0] - ours[1])
        assert (found.chosen_tokens, found.rejected_tokens) == (len(sides[0]), len(sides[1]))
        assert pair.chosen is not None


def draws_of(rows: Sequence[PairMargin], count: int) -> list[list[PairMargin]]:
    """Return draws of the rows' prompts, each with all of its pairs."""
    prompts = sorted({row.prompt for row in rows})
    drawn = np.random.default_rng(0).integers(len(prompts), size=(count, len(prompts)))
    return [[row for place in places for row in rows if row.prompt == prompts[place]] for places in drawn]


def test_intervals_draw_prompts_with_all_of_their_pairs() -> None:
    """By loops over the draws; the mean over groups draws the prompts of each group."""
    random = np.random.default_rng(3)
    rows = [
        replace(margin(place, float(value), (10, 5 + place % 9), group="ab"[place % 2]), prompt=place // 3)
        for place, value in enumerate(random.normal(0.4, 1, size=30).round(1))
    ]
    metrics = pair_metrics(rows, "subset", 60)

    def accuracy(part: Sequence[PairMargin]) -> float:
        return sum((row.sum > 0) + 0.5 * (row.sum == 0) for row in part) / len(part)

    parts = {
        "": rows,
        "/chosen_longer": [row for row in rows if row.length_bucket == "chosen_longer"],
        "/subset=b": [row for row in rows if row.group == "b"],
    }
    for name, own in parts.items():
        number = metrics[f"pairs/accuracy/sum{name}"]
        assert (number.low, number.high) == pytest.approx(interval(accuracy, draws_of(own, 60))), name
        assert (number.value, number.n) == (pytest.approx(accuracy(own)), len(own))
    first, second = (draws_of([row for row in rows if row.group == group], 60) for group in "ab")
    means = [(accuracy(a) + accuracy(b)) / 2 for a, b in zip(first, second, strict=True)]
    mean = metrics["pairs/accuracy/sum/mean_over_subset"]
    assert (mean.low, mean.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_accuracies_are_counted_by_bucket_and_group() -> None:
    rows = [
        margin(0, 1.0, (10, 5), group="a"),
        margin(1, -1.0, (10, 5), group="a"),
        margin(2, 2.0, (5, 10), group="b"),
        margin(3, 0.0, (100, 95), group="b"),
        margin(4, 3.0, (5, 5), group="b"),
    ]
    values = {name: number.value for name, number in pair_metrics(rows, "subset", 50).items()}
    name = "pairs/accuracy/sum"
    assert values[name] == values["pairs/accuracy/mean"] == 3.5 / 5
    assert values[f"{name}/chosen_longer"] == 0.5
    assert values[f"{name}/chosen_shorter"] == 1
    assert values[f"{name}/similar_length"] == 0.75
    assert values[f"{name}/subset=a"] == 0.5
    assert values[f"{name}/subset=b"] == pytest.approx(2.5 / 3)
    assert values[f"{name}/mean_over_subset"] == pytest.approx((0.5 + 2.5 / 3) / 2)
    assert not any("correlation" in name for name in values)


def test_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(1)
    gaps, values = random.normal(size=40), random.normal(size=40)
    values = values + gaps
    rows = [
        margin(place, float(value), gap=float(gap))
        for place, (value, gap) in enumerate(zip(values, gaps, strict=True))
    ]
    metrics = pair_metrics([*rows, margin(40, 9.0)], count=20)
    draws = draws_of(rows, 300)  # ranks are slow, whatever the number of draws is
    for name, statistic in (("pearson", pearsonr), ("spearman", spearmanr), ("kendall", kendalltau)):
        number = metrics[f"pairs/correlation/sum/{name}"]
        assert number.value == pytest.approx(statistic(values, gaps)[0])
        assert number.n == 40
        ends = interval(lambda part, of=statistic: of([r.sum for r in part], [r.gap for r in part])[0], draws)
        assert (number.low, number.high) == pytest.approx(ends)


def test_pairs_on_one_prompt_are_drawn_together() -> None:
    apart = [margin(place, 1.0 if place % 2 else -1.0) for place in range(40)]
    together = [replace(row, prompt=row.index % 2) for row in apart]
    widths = []
    for rows in (apart, together):
        number = pair_metrics(rows, count=500)["pairs/accuracy/sum"]
        assert number.low is not None
        assert number.high is not None
        widths.append(number.high - number.low)
    assert widths[1] == 1
    assert widths[0] < 0.4


def test_pairs_that_are_too_long_are_left_out_and_told(testbed_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "a", "chosen": " b" * size, "rejected": " c", "score_chosen": 3, "score_rejected": 1}
        for size in (2, 900)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    margins, notes = pair_margins(testbed_model, None, read_pairs(str(path)))
    assert [row.index for row in margins] == [0]
    assert margins[0].gap == 2
    assert "1 of 2 pairs are longer" in notes[0]
    margins, notes = pair_margins(testbed_model, None, read_pairs(str(path))[1:])
    assert pair_metrics(margins) == {}
    assert "1 of 1 pairs are longer" in notes[0]


def test_an_interrupted_process_goes_on_with_the_pairs_that_are_missing(
    testbed_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the margins of a process that was not interrupted, to the bit; what has changed is computed anew."""
    pairs = read_pairs("testbed:test", limit=7)
    whole = kept_margins(testbed_model, None, pairs, None, tmp_path / "whole", batch_size=2)
    read, calls = preference_sets._log_ratios, []

    def interrupted(*rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(*rest)

    monkeypatch.setattr(preference_sets, "_log_ratios", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kept_margins(testbed_model, None, pairs, None, tmp_path / "parts", batch_size=2)
    assert len((tmp_path / "parts" / "pairs.jsonl").read_text().splitlines()) == 4
    assert kept_margins(testbed_model, None, pairs, None, tmp_path / "parts", batch_size=2) == whole
    assert len(calls) == 3 + 2, "two batches were missing"
    assert kept_margins(testbed_model, None, pairs[2:], None, tmp_path / "parts")[0][0].sum == whole[0][2].sum
    assert len(calls) == 5, "nothing is computed for fewer pairs"
    changed = replace(testbed_model, identity={"step": 9})
    kept_margins(changed, None, pairs, None, tmp_path / "parts")
    assert len(calls) > 5
    assert len((tmp_path / "parts" / "previous" / "1" / "pairs.jsonl").read_text().splitlines()) == 7


def test_columns_to_group_by_must_exist(testbed_model: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"test\.jsonl:1: kind: no such column"):
        pair_margins(testbed_model, None, read_pairs("testbed:test", limit=2), by="kind")


def test_texts_become_messages_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    (pair,) = read_pairs(str(path), chat=True)
    assert isinstance(pair, PreferencePair)
    assert pair.prompt == ({"role": "user", "content": "a"},)
    assert pair.rejected == ({"role": "assistant", "content": "c"},)
