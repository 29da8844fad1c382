"""Laws between objectives that are equal for some parameters, in a limit, or at the optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives import (
    KL,
    Alpha,
    ConditionalMatching,
    Entropy,
    ForwardKL,
    LengthGap,
    LengthPower,
    Logistic,
    Mean,
    NoRefinement,
    Objective,
    PreferenceObjective,
    Regularizer,
    ReverseKL,
    Robust,
    SelfRefine,
    SharedLength,
    Sum,
    SumOf,
    TargetMargin,
    Term,
    WeightedSum,
    averaged_dpo,
    averaged_ipo,
    beta_dpo,
    cdpo,
    direct_preference_matching,
    dpo,
    dpo_positive,
    dpo_shift,
    humanline_dpo,
    ipo,
    ipo_sum,
    ld_dpo,
    rpo,
    simpo,
    sr_dpo,
    sr_ipo,
)
from lit_align.types import PairLogProbs

from .cases import each_tensor, gradient, random_pairs, with_gradient

close = torch.testing.assert_close


def equal_lengths(length: int) -> PairLogProbs:
    logps = random_pairs(width=length, dtype=torch.float64)
    return replace(logps, mask=torch.ones_like(logps.mask), policy=logps.policy - 0.1)


def averaging_divides_beta_by_the_length(averaged: Callable[[float], PreferenceObjective]) -> None:
    for length in (1, 3, 10):
        close(averaged(5.0)(equal_lengths(length)).loss, dpo(5.0 / length)(equal_lengths(length)).loss)


def averaging_rescales_the_square(averaged: Callable[[float], PreferenceObjective]) -> None:
    for length in (1, 3, 10):
        close(
            averaged(0.5)(equal_lengths(length)).loss,
            ipo_sum(0.5 / length)(equal_lengths(length)).loss / length**2,
        )


def repetition_leaves_the_mean_and_multiplies_the_sum(mean: PreferenceObjective) -> None:
    """Repeating each token k times multiplies sums by k and leaves means unchanged."""
    logps = random_pairs(dtype=torch.float64)
    repeated = each_tensor(logps, lambda value: value.repeat_interleave(3, dim=-1))
    close(mean(repeated).loss, mean(logps).loss)
    close(dpo().margin(repeated), 3 * dpo().margin(logps))


def conditional_matching_lies_between(conditional: Callable[[float], Regularizer]) -> None:
    logps = random_pairs()
    close(conditional(1 - 1e-6)(logps.policy, logps.reference)[logps.mask], kl(logps)[logps.mask], rtol=0, atol=1e-5)
    close(conditional(1e-30)(logps.policy, logps.reference), logps.policy)


def kl(logps: PairLogProbs) -> Tensor:
    return KL()(logps.policy, logps.reference)


def alpha_lies_between(alpha: Callable[[float], Callable[[Tensor], Tensor]]) -> None:
    log_ratio = torch.linspace(-5, 5, 20, dtype=torch.float64).reshape(10, 2)
    close(alpha(1 - 1e-9)(log_ratio), ReverseKL()(log_ratio), rtol=0, atol=1e-6)
    close(alpha(1e-9)(log_ratio), ForwardKL()(log_ratio), rtol=0, atol=1e-5)


LAWS = {
    averaging_divides_beta_by_the_length: (averaged_dpo, dpo),
    averaging_rescales_the_square: (averaged_ipo, ipo_sum),
    repetition_leaves_the_mean_and_multiplies_the_sum: (averaged_dpo(), dpo()),
    conditional_matching_lies_between: (ConditionalMatching, lambda alpha: KL()),
    alpha_lies_between: (Alpha, lambda alpha: Alpha(1 - alpha)),
}
"""Each law, what obeys it and what does not."""

NAMES = [law.__name__ for law in LAWS]


@pytest.mark.parametrize(("law", "right"), [(law, right) for law, (right, _) in LAWS.items()], ids=NAMES)
def test_law(law: Callable[[object], None], right: object) -> None:
    law(right)


@pytest.mark.parametrize(("law", "wrong"), [(law, wrong) for law, (_, wrong) in LAWS.items()], ids=NAMES)
def test_law_can_fail(law: Callable[[object], None], wrong: object) -> None:
    with pytest.raises(AssertionError):
        law(wrong)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PreferenceObjective(Logistic()), dpo()),
        (replace(dpo(), averaging=LengthPower(0.0)), dpo()),
        (replace(dpo(), averaging=LengthPower(1.0)), averaged_dpo(0.1)),
        (ld_dpo(weight=1.0), dpo()),
        (cdpo(label_smoothing=0.0), dpo()),
        (averaged_ipo(0.3), ipo(0.3)),
        (sr_dpo(strength=0.0), dpo()),
        (sr_ipo(strength=0.0), ipo_sum()),
        (replace(dpo(1.0), regularizer=Entropy()), direct_preference_matching()),
        (PreferenceObjective(Robust(0.1, 0.0)), dpo()),
        (dpo_positive(0.1, strength=0.0), dpo()),
        (dpo_shift(0.1, share=1.0), dpo()),
        (humanline_dpo(0.1, low=-10.0, high=10.0), dpo()),
        (beta_dpo(0.1, sensitivity=0.0, dropped=0.0), dpo()),
        (replace(sr_dpo(), refinement=SumOf((SelfRefine(0.5),))), sr_dpo()),
        (replace(simpo(), refinement=SumOf((NoRefinement(), TargetMargin(0.5)))), simpo()),
        (WeightedSum((Term("alone", sr_dpo()),)), sr_dpo()),
        (rpo(alpha=0.0), dpo()),
    ],
    ids=repr,
)
def test_two_names_for_the_same_loss(one: Objective, other: Objective) -> None:
    assert torch.equal(one(random_pairs()).loss, other(random_pairs()).loss)
    slopes = []
    for objective in (one, other):
        logps = with_gradient(random_pairs())
        slopes.append(gradient(objective(logps).loss, logps.policy))
    assert torch.equal(*slopes)


def test_names_that_differ_do_differ() -> None:
    losses = [objective(random_pairs()).loss for objective in (dpo(), averaged_dpo(), ipo(), ipo_sum(), sr_dpo())]
    assert all(not torch.allclose(one, other) for i, one in enumerate(losses) for other in losses[:i])


def test_shared_length_without_the_rest_compares_equal_lengths() -> None:
    logps = random_pairs()
    shared = logps.mask.all(1, keepdim=True).expand_as(logps.mask)
    close(SharedLength(0.0)(logps.policy, logps.mask), Sum()(logps.policy, shared))


# At the optimum of the problem that a method stands for, its sigmoid sees the difference of the true rewards.


def optimum(reward: Tensor, without_reward: Tensor, beta: float) -> Tensor:
    """Return the maximiser of ``E[r] - β E[log π - without_reward]`` over distributions on finitely many responses."""
    return torch.log_softmax(without_reward + reward / beta, dim=-1)


def paired(values: Tensor) -> Tensor:
    """Return all ordered pairs of five one-token responses, ``[pair, 2, 1]``."""
    return torch.cartesian_prod(values, values)[..., None]


REWARD = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.45, 0.3, 0.15, 0.07, 0.03], dtype=torch.float64).log()


def rewards_are_recovered(objective: PreferenceObjective, without_reward: Tensor) -> None:
    policy, mask = optimum(REWARD, without_reward, objective.contrast.beta), torch.ones(25, 2, 1, dtype=torch.bool)
    outcome = objective(PairLogProbs(policy=paired(policy), reference=paired(REFERENCE), mask=mask))
    true = paired(REWARD).squeeze(-1)
    close(objective.contrast.beta * outcome.margin, true[:, 0] - true[:, 1])


@pytest.mark.parametrize(
    ("regularizer", "without_reward"),
    [
        (KL(), REFERENCE),
        (Entropy(), torch.zeros(5, dtype=torch.float64)),
        (ConditionalMatching(0.1), torch.where(REFERENCE.exp() > 0.1, 0.0, REFERENCE)),
    ],
    ids=repr,
)
def test_the_optimum_recovers_the_rewards(regularizer: Regularizer, without_reward: Tensor) -> None:
    rewards_are_recovered(replace(dpo(0.7), regularizer=regularizer), without_reward)
    for wrong in {KL(), Entropy(), ConditionalMatching(0.1)} - {regularizer}:
        with pytest.raises(AssertionError):
            rewards_are_recovered(replace(dpo(0.7), regularizer=wrong), without_reward)


def test_preference_matching_answers_in_proportion_to_preferences() -> None:
    """At β = 1 the optimum is the Plackett-Luce distribution of the rewards."""
    close(optimum(REWARD, torch.zeros(5, dtype=torch.float64), beta=1.0), torch.log_softmax(REWARD, -1))


@pytest.mark.parametrize(("sign", "holds"), [(1, True), (-1, False)])
def test_a_length_gap_removes_the_length_from_the_policy(sign: int, holds: bool) -> None:
    """The reward is the learned part plus α per token; with the other sign, length would be rewarded."""
    beta, alpha = 0.5, 0.2
    mask = torch.arange(4) < torch.tensor([[[4], [1]]])
    lengths = mask.sum(-1).double()
    true = torch.tensor([[2.0, 1.5]], dtype=torch.float64)
    log_ratio = (true - alpha * lengths) / beta  # at the optimum of E[r - α |y|] - β KL, up to a constant
    policy = mask * (log_ratio / lengths)[..., None]
    objective = PreferenceObjective(Logistic(beta), refinement=LengthGap(alpha / beta))
    outcome = objective(PairLogProbs(policy=policy, reference=torch.zeros_like(policy), mask=mask))
    logit = beta * (outcome.margin - sign * outcome.offset)
    assert torch.allclose(logit, true[:, 0] - true[:, 1]) is holds


def test_smoothed_labels_are_content_with_a_finite_margin() -> None:
    margin = torch.tensor([math.log(0.9 / 0.1) / 0.1], dtype=torch.float64, requires_grad=True)
    assert gradient(cdpo(0.1, 0.1).contrast(margin), margin).abs() < 1e-12
    assert gradient(dpo(0.1).contrast(margin), margin).abs() > 1e-3


def test_mean_is_what_the_averaging_operator_says() -> None:
    """At the optimum ``β (1 / n) log(π / π_ref) = r + k``, so the margin does not depend on lengths."""
    beta, mask = 2.0, torch.arange(6) < torch.tensor([[[2], [6]]])
    true = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    policy = mask * (true / beta)[..., None]  # every token carries r / β, whatever the length
    logps = PairLogProbs(policy=policy, reference=torch.zeros_like(policy), mask=mask)
    close(beta * averaged_dpo(beta).margin(logps), true[:, 0] - true[:, 1])
    assert isinstance(averaged_dpo().averaging, Mean)
