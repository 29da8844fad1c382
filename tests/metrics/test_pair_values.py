"""Buckets of the length gap, and what length alone would reach, by hand."""

from __future__ import annotations

import pytest
import torch

from lit_align.metrics import PairMetrics
from lit_align.metrics.pair_values import BUCKETS, Presence, of_length_gaps
from lit_align.objectives import averaged_dpo, dpo
from lit_align.types import PairLogProbs
from tests.metrics.examples import batch_of, logps_of, outcome_of


@pytest.mark.parametrize(
    ("chosen", "rejected", "bucket"),
    [
        *(
            (10, 20, "much_shorter"),
            (11, 20, "shorter"),
            (17, 20, "shorter"),
            (18, 20, "similar"),
            (20, 20, "similar"),
        ),
        *((20, 18, "similar"), (20, 17, "longer"), (39, 20, "longer"), (40, 20, "much_longer"), (1, 1, "similar")),
    ],
)
def test_the_edges_of_the_buckets(chosen: int, rejected: int, bucket: str) -> None:
    logps = logps_of([[[-1.0] * chosen, [-1.0] * rejected]])
    values = of_length_gaps(outcome_of([[1.0, 0.0]]), logps, Presence.of(logps))
    inside = [name for name in BUCKETS if bool(values[f"lengths/chosen_is/{name}"].value[0])]
    assert inside == [bucket]
    assert [name for name in BUCKETS if bool(values[f"rewards/accuracies/chosen_{name}"].counts[0])] == [bucket]


def test_accuracy_of_each_bucket_and_of_the_rule() -> None:
    """Two much longer, of which one is ranked right; one much shorter, ranked right; one equal, tied."""
    logps = logps_of([[[-1.0] * 4, [-1.0]], [[-1.0] * 4, [-1.0]], [[-1.0], [-1.0] * 4], [[-1.0], [-1.0]]])
    metrics = PairMetrics()
    metrics.update(outcome_of([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), logps, batch_of(logps))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["rewards/accuracies/chosen_much_longer"] == 0.5
    assert found["rewards/accuracies/chosen_much_shorter"] == 1.0
    assert found["rewards/accuracies/chosen_similar"] == 0.5
    assert "rewards/accuracies/chosen_longer" not in found
    assert found["lengths/chosen_is/much_longer"] == 0.5
    assert found["lengths/chosen_is/longer"] == 0.0
    assert found["lengths/longer_wins"] == (2 + 0 + 0.5) / 4


def test_one_side_has_no_gap() -> None:
    logps = logps_of([[[-1.0]]])
    assert of_length_gaps(outcome_of([[1.0]]), logps, Presence.of(logps)) == {}
    assert not Presence.of(logps).both.any()
    assert torch.equal(Presence.of(logps).pairs, torch.tensor([True]))


def found(
    objective: object, logps: PairLogProbs, weight: list[float], quarters: tuple[float, ...]
) -> dict[str, float]:
    logps.policy.requires_grad_()
    batch = batch_of(logps, weight)
    outcome = objective(logps)  # type: ignore[operator]
    (pull,) = torch.autograd.grad((outcome.loss * batch.weight).sum(), logps.policy)
    metrics = PairMetrics()
    metrics.quarters = quarters
    metrics.update(outcome, logps, batch, pull)
    return {name: float(value) for name, value in metrics.compute().items() if name.startswith("gradient")}


def test_sums_pull_long_responses_harder_and_means_do_not() -> None:
    """At equal models every margin is 0 and the slope of DPO is β/2 per nat: β/2 · n for sums, β/2 for means."""
    tokens = [[[-1.0], [-1.0] * 4], [[-1.0] * 2, [-1.0] * 8]]
    sums = found(dpo(beta=0.2), logps_of(tokens, reference=-1.0), [1.0, 1.0], (1.0, 2.0, 4.0))
    assert sums["gradient/chosen"] == pytest.approx(0.1 * (1 + 2) / 2)
    assert sums["gradient/rejected"] == pytest.approx(0.1 * (4 + 8) / 2)
    quarters = [sums[f"gradient/{name}_quarter"] for name in ("shortest", "short", "long", "longest")]
    assert quarters == pytest.approx([0.1, 0.2, 0.4, 0.8])
    means = found(averaged_dpo(beta=0.2), logps_of(tokens, reference=-1.0), [1.0, 1.0], (1.0, 2.0, 4.0))
    assert list(means.values()) == pytest.approx([0.1] * 6)


def test_a_pair_s_weight_is_the_mean_s_and_not_the_gradient_s() -> None:
    """Pairs of weight 1 and 3: (1 · 0.1 + 3 · 0.2) / 4; a copy of weight 0 is not there."""
    tokens = [[[-1.0], [-1.0]], [[-1.0] * 2, [-1.0]], [[-1.0] * 9, [-1.0]]]
    sums = found(dpo(beta=0.2), logps_of(tokens, reference=-1.0), [1.0, 3.0, 0.0], ())
    assert sums == pytest.approx({"gradient/chosen": 0.175, "gradient/rejected": 0.1})


def means(metrics: PairMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.compute().items()}


def test_the_two_scales_of_a_margin() -> None:
    """Sums -2 against -3: chosen wins by 1. Means -2/1 against -3/4: it loses by 1.25. The second pair agrees."""
    logps = logps_of([[[-2.0], [-0.75] * 4], [[-1.0, -1.0], [-2.0, -2.0]]])
    metrics = PairMetrics()
    metrics.update(outcome_of([[0.0, 0.0]] * 2), logps, batch_of(logps))
    found = means(metrics)
    assert found["margin/by_sum"] == pytest.approx((1 + 2) / 2)
    assert found["margin/by_mean"] == pytest.approx((-1.25 + 1) / 2)
    assert found["margin/signs_differ"] == 0.5


def test_without_a_reference_the_scales_are_those_of_the_log_probs() -> None:
    logps = logps_of([[[-2.0], [-0.5] * 2]], reference=None)
    metrics = PairMetrics()
    metrics.update(outcome_of([[0.0, 0.0]]), logps, batch_of(logps))
    assert means(metrics)["margin/by_sum"] == pytest.approx(-1.0)


def test_a_margin_grows_while_the_chosen_response_loses_probability() -> None:
    """From -1 a token: chosen at -1.5 has lost 0.5 · 2, rejected at -3 has lost 2 · 1. Chosen of pair 2 has gained."""
    logps = logps_of([[[-1.5, -1.5], [-3.0]], [[-0.5], [-1.0]]], reference=-1.0)
    metrics = PairMetrics(from_start=True)
    metrics.update(outcome_of([[0.0, 0.0]] * 2), logps, batch_of(logps, [1.0, 3.0]))
    found = means(metrics)
    assert found["displacement/chosen/sum"] == pytest.approx((-1.0 + 3 * 0.5) / 4)
    assert found["displacement/chosen/mean"] == pytest.approx((-0.5 + 3 * 0.5) / 4)
    assert found["displacement/chosen/fell"] == 0.25
    assert found["displacement/rejected/sum"] == pytest.approx(-2.0 / 4)
    assert found["displacement/rejected/fell"] == 0.25


def test_no_displacement_from_a_reference_that_was_never_the_policy() -> None:
    logps = logps_of([[[-1.5], [-3.0]]])
    metrics = PairMetrics()
    metrics.update(outcome_of([[0.0, 0.0]]), logps, batch_of(logps))
    assert not [name for name in means(metrics) if "displacement" in name]
