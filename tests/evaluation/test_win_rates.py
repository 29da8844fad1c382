from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr

from lit_align.evaluation.intervals import resamples
from lit_align.evaluation.win_rates import (
    Judgements,
    comparison,
    fit_length_model,
    fit_logistic,
    joint_difficulty,
    length_agreement,
    length_controlled,
    outcome_metrics,
)
from tests.evaluation import by_hand

pytestmark = pytest.mark.slow

PUBLISHED = os.environ.get("LIT_ALIGN_LENGTH_CONTROLLED")
"""A file of public judgements with published length-controlled win rates; see the guide on evaluation."""


def judge(quality: float, effect: float, mean: float, count: int, seed: int) -> Judgements:
    """Judgements of a judge who likes quality and length, of a policy whose lengths differ by ``mean`` on average."""
    random = np.random.default_rng(seed)
    longer = random.normal(mean, 400, size=count)
    p = expit(quality + effect * np.tanh(longer / np.std(longer, ddof=1)))
    return Judgements(np.arange(count), (random.random(count) < p).astype(float), longer)


def cells(judgements: Judgements) -> tuple[np.ndarray, np.ndarray]:
    return judgements.preference[:, None], judgements.longer[:, None]


def test_wins_ties_and_losses_are_counted() -> None:
    metrics = outcome_metrics(np.array([[1.0], [1.0], [0.5], [0.0]]), count=200)
    assert {name: number.value for name, number in metrics.items()} == {
        "win_rate": 0.625,
        "win_rate/win": 0.5,
        "win_rate/tie": 0.25,
        "win_rate/lose": 0.25,
    }
    assert [comparison(*pair) for pair in ((1, 0), (0, 1), (1, 1))] == [1.0, 0.0, 0.5]


def test_agreement_with_length_leaves_out_what_is_undecided() -> None:
    agreement = length_agreement(np.array([[1.0], [0.0], [0.5], [1.0], [1.0]]), np.array([[9.0], [5], [7], [-3], [0]]))
    assert agreement is not None
    assert agreement.value == pytest.approx(1 / 3)
    both = [(1.0, 9.0), (0.0, 5.0), (0.5, 7.0), (1.0, -3.0), (1.0, 0.0)]

    def share(rows: list[tuple[float, float]]) -> float:
        decided = [(won == 1) == (longer > 0) for won, longer in rows if won != 0.5 and longer]
        return sum(decided) / len(decided) if decided else 0.5

    draws = [[both[row] for row in rows] for rows in resamples(5, 1, 2000)[0]]
    assert (agreement.low, agreement.high) == pytest.approx(by_hand.interval(share, draws))
    assert length_agreement(np.array([[0.5]]), np.array([[3.0]])) is None


def test_the_fit_minimises_the_loss_that_is_written_down() -> None:
    random = np.random.default_rng(4)
    design, preference, weight = random.normal(size=(80, 3)), random.random(80), random.random(80) + 0.1

    def loss(b: np.ndarray) -> float:
        logits = design @ b
        return float((weight * (np.logaddexp(0, logits) - preference * logits)).sum() + 0.5 * 2.0 * b @ b)

    best = minimize(loss, np.zeros(3), tol=1e-10).x
    assert fit_logistic(design, preference, weight, penalty=2.0) == pytest.approx(best, abs=2e-4)


def tied(place: int) -> Judgements:
    """Judgements of 30 prompts with wins, ties and losses."""
    own = judge(0.2 * place - 0.4, 1.0, 150 * place - 200, 30, seed=20 + place)
    preference = own.preference.copy()
    preference[::7] = 0.5
    return Judgements(own.prompt, preference, own.longer)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_win_rate_and_its_interval_are_those_of_fits_by_hand(count: int) -> None:
    """Of a model alone; of several, which share the effect of length; of five, with the difficulty of prompts."""
    models = [tied(place) for place in range(count)]
    terms, wins = [by_hand.length_term(model.longer) for model in models], [model.preference for model in models]
    difficulty = by_hand.difficulties(terms, wins) if count == 5 else None
    effect = by_hand.mean_effect(terms, wins, difficulty) if count > 1 else None
    names = [f"model {place}" for place in range(count)]
    columns = dict(zip(names, map(cells, models), strict=True))
    metrics, _ = length_controlled(
        {name: own[0] for name, own in columns.items()}, {name: own[1] for name, own in columns.items()}, 12
    )

    def of_rows(model: Judgements, rows: list[int]) -> float:
        part = None if difficulty is None else difficulty[rows]
        return by_hand.win_rate(by_hand.length_term(model.longer[rows]), model.preference[rows], part, effect)

    draws = [list(rows) for rows in resamples(30, 1, 12)[0]]
    for name, model in zip(names, models, strict=True):
        estimate = metrics[name]
        low, high = by_hand.interval(lambda rows, model=model: of_rows(model, rows), draws)
        assert estimate.value == pytest.approx(of_rows(model, list(range(30))), abs=5e-4)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=2e-3)
        assert estimate.n == 30


def test_a_policy_that_only_got_longer_is_within_its_interval_of_one_half() -> None:
    judgements = judge(quality=0.0, effect=1.5, mean=350, count=500, seed=5)
    won, longer = cells(judgements)
    metrics, notes = length_controlled({"longer": won}, {"longer": longer})
    controlled = metrics["longer"]
    assert won.mean() > 0.65
    assert controlled.low is not None
    assert controlled.high is not None
    assert controlled.low < 0.5 < controlled.high
    assert controlled.high - controlled.low < 0.2
    assert notes == []


@pytest.mark.long
def test_the_interval_of_policies_that_only_got_longer_holds_one_half_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(60):
        won, longer = cells(judge(quality=0.0, effect=1.5, mean=350, count=300, seed=100 + seed))
        controlled = length_controlled({"longer": won}, {"longer": longer})[0]["longer"]
        assert controlled.low is not None
        assert controlled.high is not None
        inside += controlled.low < 0.5 < controlled.high
    assert inside >= 53, "of 60 at 95 %: 57, and fewer than 53 once in a hundred times"


@pytest.mark.parametrize("quality", [-1.0, 0.7])
def test_the_true_preference_of_a_judge_is_recovered(quality: float) -> None:
    judgements = judge(quality, effect=1.5, mean=-300, count=20_000, seed=6)
    assert fit_length_model([judgements]).win_rate(judgements) == pytest.approx(expit(quality), abs=0.02)


def test_models_lend_each_other_the_effect_of_length() -> None:
    """A model that is always much shorter says little of the effect of length; the others do."""
    models = [judge(0.2 * place, 1.0, 100 * place, 2000, seed=place) for place in range(3)]
    short = judge(0.0, 1.0, -1200, 2000, seed=9)
    alone, together = fit_length_model([short]), fit_length_model([*models, short])
    truth = 0.5
    assert together.length_effect == pytest.approx(1.0, abs=0.15)
    assert abs(together.win_rate(short) - truth) < 0.06
    assert abs(alone.coefficients(short)[1] - 1) > abs(together.coefficients(short)[1] - 1)


def test_difficulties_of_instructions_are_recovered_from_all_models() -> None:
    random = np.random.default_rng(7)
    difficulty, models = random.normal(size=150), []
    for place in range(12):
        longer = random.normal(0, 100, size=150)
        p = expit(difficulty + 0.2 * place - 1 + np.tanh(longer / 100))
        models.append(Judgements(np.arange(150), (random.random(150) < p).astype(float), longer))
    estimated = joint_difficulty(models)
    assert np.corrcoef([estimated[prompt] for prompt in range(150)], difficulty)[0, 1] > 0.8
    assert fit_length_model(models).difficulty is not None
    assert fit_length_model(models[:4]).difficulty is None


def test_lengths_that_hardly_overlap_are_warned_of() -> None:
    won, longer = cells(judge(0.0, 1.0, -1500, 200, seed=8))
    assert "short: its lengths hardly overlap" in length_controlled({"short": won}, {"short": longer}, 5)[1][0]


def test_all_won_and_equal_lengths_give_finite_numbers() -> None:
    ones, same = np.ones((10, 1)), np.zeros((10, 1))
    estimate = length_controlled({"model": ones}, {"model": same}, 20)[0]["model"]
    assert estimate.value > 0.9


@pytest.mark.skipif(PUBLISHED is None, reason="LIT_ALIGN_LENGTH_CONTROLLED names no file of public judgements")
def test_published_win_rates_are_reproduced() -> None:
    assert PUBLISHED is not None
    with gzip.open(PUBLISHED) as file:
        content = json.load(file)
    rows = {name: np.array(model["rows"], dtype=float) for name, model in content.items()}
    models = {
        name: Judgements(part[:, 0].astype(int), part[:, 1] - 1, part[:, 3] - part[:, 2])
        for name, part in rows.items()
    }
    shared = fit_length_model(list(models.values()))
    ours = [100 * shared.win_rate(model) for model in models.values()]
    published = [model["lc"] for model in content.values()]
    assert spearmanr(ours, published)[0] >= 0.98
    assert np.abs(np.array(ours) - published).mean() <= 2
