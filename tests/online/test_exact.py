"""Exact optimisation on a listed set reaches the closed forms, and the paper's collapse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_align.objectives.regularizer import KL, ConditionalMatching, Entropy, Regularizer
from lit_align.online import Problem, matching_kl
from tests.online.tree import MASK, REFERENCE, SCORE, logits, problem, tokens, whole

CASES: list[tuple[Regularizer, float]] = [
    (Entropy(), 1.0),
    (Entropy(), 0.5),
    (KL(), 1.0),
    (KL(), 0.3),
    (ConditionalMatching(0.3), 1.0),
    (ConditionalMatching(0.3), 0.5),
]


def by_hand(regularizer: Regularizer, beta: float) -> Tensor:
    """The three closed forms written out, each as its own formula."""
    weights = (SCORE / beta).exp()
    probability = REFERENCE.exp()
    match regularizer:
        case Entropy():
            factors = torch.ones_like(probability)
        case KL():
            factors = probability
        case ConditionalMatching(alpha):
            factors = torch.where(probability > alpha, 1.0, probability)
    weights = weights * torch.where(MASK, factors, 1.0).prod(-1)
    return weights / weights.sum()


def trained(target: Problem) -> Tensor:
    """Logits after exact gradient ascent."""
    rows = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rows], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -target.value(tokens(rows))
        loss.backward()
        return loss

    optimizer.step(closure)
    return rows.detach()


@pytest.mark.parametrize(("regularizer", "beta"), CASES, ids=str)
def test_exact_gradient_training_reaches_the_closed_form(regularizer: Regularizer, beta: float) -> None:
    found = whole(trained(problem(regularizer, beta))).exp()
    assert float((found - by_hand(regularizer, beta)).abs().max()) < 1e-4


@pytest.mark.parametrize(("regularizer", "beta"), CASES, ids=str)
def test_the_closed_form_is_the_one_written_out(regularizer: Regularizer, beta: float) -> None:
    found = problem(regularizer, beta).optimum().exp()
    assert float((found - by_hand(regularizer, beta)).abs().max()) < 1e-12


def test_the_masks_of_the_cases_differ() -> None:
    """Otherwise conditional matching would equal another objective, and its test would show nothing."""
    supported = REFERENCE.exp()[MASK] > 0.3
    assert supported.any()
    assert not supported.all()


def test_the_optimum_is_better_than_its_surroundings() -> None:
    target = problem(ConditionalMatching(0.3), 0.5)
    best = target.value(tokens(trained(target)))
    for seed in range(20):
        assert target.value(tokens(trained(target) + logits(seed, 0.3))) < best


def test_matching_is_zero_exactly_where_the_policy_matches() -> None:
    matched = whole(trained(problem(Entropy(), 1.0)))
    assert abs(float(matching_kl(SCORE, matched))) < 1e-6
    assert float(matching_kl(SCORE, whole(trained(problem(KL(), 1.0))))) > 0.1


# ── the collapse: a reference of 99 to 1, preferences of 51 to 49 ───────────────────────────────────────────────────


def minority(regularizer: Regularizer, beta: float) -> float:
    """Probability of the second response after exact training on one token."""
    score = torch.tensor([0.51, 0.49], dtype=torch.float64).log()
    reference = torch.tensor([[0.99], [0.01]], dtype=torch.float64).log()
    target = Problem(regularizer, beta, score, torch.ones(2, 1, dtype=torch.bool), reference)
    row = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([row], lr=0.05)
    for _ in range(3000):
        optimizer.zero_grad()
        (-target.value(row.log_softmax(-1)[:, None])).backward()
        optimizer.step()
    return float(row.detach().softmax(-1)[1])


@pytest.mark.long
@pytest.mark.slow
def test_standard_rlhf_keeps_the_bias_of_its_reference() -> None:
    """0.01 · 49 / (0.99 · 51 + 0.01 · 49) at β = 1, and less at β = 0.1."""
    assert minority(KL(), 1.0) == pytest.approx(0.49 / (0.99 * 51 + 0.49), abs=1e-4)
    assert minority(KL(), 0.1) == pytest.approx(0.01 * 0.49**10 / (0.99 * 0.51**10 + 0.01 * 0.49**10), abs=1e-4)


@pytest.mark.slow
def test_preference_matching_cures_it() -> None:
    assert minority(Entropy(), 1.0) == pytest.approx(0.49, abs=1e-4)
