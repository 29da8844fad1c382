"""The sampled gradient is unbiased, and training on samples converges to the exact optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives.regularizer import KL, ConditionalMatching, Entropy, Regularizer
from lit_align.online import (
    GAE,
    RLHF,
    Advantage,
    Clipped,
    GreedyBaseline,
    KLAfter,
    LeaveOneOut,
    MeanPenalty,
    Reinforce,
    ResponseMean,
    ResponseSum,
    Surrogate,
    TokenCost,
    TokenMean,
    conditional_pm_rlhf,
    kl_rlhf,
    pm_rlhf,
)
from lit_align.online.surrogate import ValueLoss
from lit_align.types import Rollout, RolloutTokens
from tests.online.tree import FIRST, draw, logits, problem, rollout, tokens, whole

REGULARIZERS: list[Regularizer] = [KL(), Entropy(), ConditionalMatching(0.3)]
ADVANTAGES: list[Advantage] = [LeaveOneOut(), GreedyBaseline(), GAE(trace=1.0)]
EACH = 4


@dataclass(frozen=True)
class MeanBaseline(Advantage):
    """The mean of all responses, this one included: shrinks the gradient by (n - 1) / n."""

    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        returns = rewards.sum(-1).view(-1, EACH)
        return torch.where(rollout.mask, (returns - returns.mean(-1, keepdim=True)).view(-1, 1), 0.0)


def exact_gradient(regularizer: Regularizer, beta: float, rows: Tensor) -> Tensor:
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem(regularizer, beta).value(tokens(leaf)), leaf)
    return gradient


def sampled_gradients(objective: RLHF, rows: Tensor, prompts: int = 6000) -> Tensor:
    """One estimate for each prompt, ``[prompt, 9]``."""
    drawn = draw(rows, prompts, EACH, seed=1)
    experience = objective.experience(rollout(rows, drawn, EACH, objective.regularizer))
    leaf = rows.clone().requires_grad_()
    one_response = tokens(leaf)
    slopes = torch.stack([
        torch.autograd.grad(one_response[row, place], leaf, retain_graph=True)[0].flatten()
        for row in range(7)
        for place in range(2)
    ]).view(7, 2, 9)  # fmt: skip
    now = one_response[drawn].detach().requires_grad_()
    outcome = objective(experience, now)
    (inner,) = torch.autograd.grad(outcome.policy.sum(), now)
    per_response = -(inner[..., None] * slopes[drawn]).sum(1)
    return per_response.view(prompts, EACH, 9).mean(1)


def deviation(objective: RLHF, regularizer: Regularizer, beta: float) -> float:
    """Largest distance from the exact gradient, in standard errors."""
    rows = logits(3)
    found = sampled_gradients(objective, rows)
    error = found.std(0) / math.sqrt(len(found))
    return float(
        ((found.mean(0) - exact_gradient(regularizer, beta, rows).flatten()).abs() / error.clamp_min(1e-9)).max()
    )


@pytest.mark.parametrize("surrogate", [Reinforce(), Clipped()], ids=str)
@pytest.mark.parametrize("advantage", ADVANTAGES, ids=str)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_the_sampled_gradient_is_the_exact_one(
    regularizer: Regularizer, advantage: Advantage, surrogate: Surrogate
) -> None:
    objective = RLHF(regularizer, 0.5, advantage, surrogate, ResponseSum())
    assert deviation(objective, regularizer, 0.5) < 4


@pytest.mark.parametrize(
    "wrong",
    [
        RLHF(KL(), 0.5, MeanBaseline(), Reinforce(), ResponseSum()),
        RLHF(KL(), 0.5, LeaveOneOut(), Reinforce(), ResponseMean()),
        RLHF(Entropy(), 0.5, LeaveOneOut(), Reinforce(), ResponseSum()),
        RLHF(KL(), 0.5, LeaveOneOut(), Reinforce(), ResponseSum(), score_limit=0.5),
    ],
    ids=["mean with itself", "mean of tokens", "another regularizer", "clamped scores"],
)
def test_a_wrong_estimator_is_found_out(wrong: RLHF) -> None:
    assert deviation(wrong, KL(), 0.5) > 6


# ── training by sampling ────────────────────────────────────────────────────────────────────────────────────────────


def train(objective: RLHF, steps: int = 400, epochs: int = 1, seed: int = 0) -> Tensor:
    """Logits after training on samples, with one value for each state where values are needed."""
    rows = logits(3).requires_grad_()
    table = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [rows], "lr": 0.05}, {"params": [table], "lr": 0.1}])
    average = torch.zeros_like(rows)
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, (0.05, 0.1), strict=True):
            group["lr"] = rate * (1 - step / steps)
        drawn = draw(rows, 256, EACH, seed=10_000 * seed + step)
        record = replace(rollout(rows, drawn, EACH, objective.regularizer), values=states(table, drawn).detach())
        experience = objective.experience(record)
        for _ in range(epochs):
            optimizer.zero_grad()
            outcome = objective(
                experience, tokens(rows)[drawn], states(table, drawn) if objective.needs.values else None
            )
            loss = outcome.policy.sum() / outcome.units.sum()
            (loss if outcome.value is None else loss + outcome.value.sum() / outcome.units.sum()).backward()
            optimizer.step()
        if step >= steps // 2:
            average += rows.detach().log_softmax(-1) / (steps - steps // 2)
    return average


def states(table: Tensor, drawn: Tensor) -> Tensor:
    """The value of the state that each token is chosen in: none yet, after 1, after 2."""
    return torch.stack([table[:1].expand(len(drawn)), table[FIRST[drawn]]], dim=1)


ESTIMATORS = [
    ("PPO", GAE(), Clipped(), 2),
    ("RLOO", LeaveOneOut(), Reinforce(), 1),
    ("ReMax", GreedyBaseline(), Reinforce(), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("regularizer", "name", "advantage", "surrogate", "epochs"),
    [
        pytest.param(regularizer, *estimator, marks=() if row == column else pytest.mark.long)
        for row, regularizer in enumerate(REGULARIZERS)
        for column, estimator in enumerate(ESTIMATORS)
    ],
    ids=str,
)
def test_training_by_sampling_gets_there(
    regularizer: Regularizer, name: str, advantage: Advantage, surrogate: Surrogate, epochs: int
) -> None:
    objective = RLHF(regularizer, 0.5, advantage, surrogate, ResponseSum())
    found, wanted = whole(train(objective, epochs=epochs)).exp(), problem(regularizer, 0.5).optimum().exp()
    assert float((found - wanted).abs().max()) < 0.02
    other = problem(KL() if regularizer != KL() else Entropy(), 0.5).optimum().exp()
    assert float((found - other).abs().max()) > 0.04


# ── the joint ───────────────────────────────────────────────────────────────────────────────────────────────────────


def paper_rollout() -> Rollout:
    """π .5 .2 .05 against π_ref .4 .3 .02, score 1.2."""
    policy, reference = (torch.tensor([row]).log() for row in ([0.5, 0.2, 0.05], [0.4, 0.3, 0.02]))
    one = torch.ones(1)
    return Rollout(policy, torch.ones(1, 3, dtype=torch.bool), 1.2 * one, one.long(), one, reference)


def test_golden_token_rewards() -> None:
    """-0.1 log .5, -0.1 log .2, 1.2 - 0.1 log(.05 / .02) under conditional matching with α = .1."""
    found = conditional_pm_rlhf(beta=0.1, alpha=0.1).shaping(paper_rollout())
    assert found.flatten().tolist() == pytest.approx([0.0693147, 0.1609438, 1.1083709], abs=1e-6)
    found = kl_rlhf(beta=0.1).shaping(paper_rollout())
    assert found.flatten().tolist() == pytest.approx([-0.0223144, 0.0405465, 1.2 - 0.0916291], abs=1e-6)


def test_the_score_goes_on_the_true_last_token() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    one = torch.ones(2)
    record = Rollout(torch.zeros(2, 3), mask, torch.tensor([5.0, 7.0]), one.long(), one, torch.zeros(2, 3))
    assert kl_rlhf().shaping(record).tolist() == [[0.0, 5.0, 0.0], [7.0, 0.0, 0.0]]


def test_a_token_that_has_moved_enough_is_clipped() -> None:
    one, mask = torch.ones(1), torch.ones(1, 2, dtype=torch.bool)
    record = Rollout(torch.zeros(1, 2), mask, one, one.long(), one, torch.zeros(1, 2), torch.zeros(1, 2))
    objective = RLHF(KL(), advantage=GAE(1.0, 1.0))
    now = torch.tensor([[math.log(1.5), math.log(1.1)]])
    assert objective.shares_clipped(objective.experience(record), now).tolist() == [0.5]


def test_micro_batches_add_up_to_the_whole() -> None:
    """Numerators and denominators are sums over responses."""
    rows, drawn = logits(3), draw(logits(3), 6, EACH, seed=5)
    objective = RLHF(KL(), 0.5, LeaveOneOut(), Clipped(), TokenMean())
    experience = objective.experience(rollout(rows, drawn, EACH, KL()))
    outcome = objective(experience, tokens(rows)[drawn])
    assert outcome.policy.shape == outcome.units.shape == (24,)
    assert float(outcome.units.sum()) == float(experience.rollout.mask.sum())


def test_preferences_depend_on_the_scale_of_scores_and_so_it_says() -> None:
    assert not kl_rlhf(score_limit=5.0).cautions
    assert any("clamped" in caution for caution in conditional_pm_rlhf(score_limit=5.0).cautions)
    assert any("impossible" in caution for caution in pm_rlhf().cautions)


def test_a_matching_run_says_that_its_length_is_not_bounded() -> None:
    (caution,) = conditional_pm_rlhf().cautions
    assert "max_new_tokens" in caution
    for control in (TokenCost(1.0), MeanPenalty(), KLAfter(8)):
        assert not conditional_pm_rlhf(length=control).cautions
    assert not kl_rlhf().cautions


def test_a_greedy_score_is_clamped_like_the_others() -> None:
    """Both scores are 50, and the limit is 5: the response is as good as the most likely one."""
    one, mask, log_probs = torch.tensor([50.0]), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    rollout = Rollout(log_probs, mask, one, one.long(), one, reference=log_probs, greedy=one)
    objective = kl_rlhf(advantage=GreedyBaseline(), score_limit=5.0)
    assert not objective.experience(rollout).advantage.any()
    assert objective.experience(replace(rollout, greedy=-one)).advantage.eq(10).all()


def test_a_value_loss_that_nothing_needs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"value_loss is ValueLoss\(.*advantage LeaveOneOut needs no value model"):
        RLHF(advantage=LeaveOneOut(), value_loss=ValueLoss(weight=5.0))
    RLHF(value_loss=ValueLoss(weight=5.0))


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"beta": -1.0}, {"score_limit": 0.0}])
def test_numbers_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RLHF(**settings)  # type: ignore[arg-type]
