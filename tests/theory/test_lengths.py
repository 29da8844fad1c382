"""The optimum of conditional matching runs towards the length limit at every β, and three controls hold it back."""

from __future__ import annotations

import math

import pytest
import torch

from lit_align.objectives.regularizer import KL, ConditionalMatching, Regularizer
from lit_align.online import KLAfter, LengthControl, MeanPenalty, NoLengthControl, TokenCost
from tests.theory.lengths import END, Toy

pytestmark = pytest.mark.slow

MATCHING = ConditionalMatching(0.1)
GOING_ON = 2.05
"""Weight of going on: two supported tokens, and one of π_ref 0.05."""
CONTROLS: list[LengthControl] = [NoLengthControl(), TokenCost(1.0), MeanPenalty(), KLAfter(3)]


@pytest.mark.parametrize("length", CONTROLS, ids=repr)
@pytest.mark.parametrize("regularizer", [MATCHING, KL()], ids=repr)
def test_the_lengths_are_those_of_all_responses_listed(regularizer: Regularizer, length: LengthControl) -> None:
    toy = Toy(regularizer, length, limit=6)
    problem, lengths, cut = toy.listed()
    optimum = problem.optimum().exp()
    shares, cut_share = toy.lengths()
    listed = torch.zeros(6, dtype=torch.float64).index_add(0, lengths - 1, optimum)
    torch.testing.assert_close(listed, shares, rtol=0, atol=1e-12)
    assert float(optimum[cut].sum()) == pytest.approx(cut_share, abs=1e-12)


@pytest.mark.parametrize("limit", [10, 64, 512])
def test_half_of_the_responses_are_cut_at_every_limit(limit: int) -> None:
    toy = Toy(MATCHING, limit=limit)
    assert toy.lengths()[1] == pytest.approx(1 - 1 / GOING_ON, abs=1e-3)
    assert toy.mean_length() == pytest.approx(limit - 0.47, abs=0.02)
    assert Toy(KL(), limit=limit).mean_length() < 5.001


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_a_bounded_score_helps_only_below_a_limit_of_length(beta: float) -> None:
    """A score of 3 for up to two tokens is outweighed by 3 / (β log M) more of them."""

    def early(limit: int) -> float:
        shares, _ = Toy(MATCHING, limit=limit).lengths()
        tilted = shares * torch.where(torch.arange(1, limit + 1) <= 2, math.exp(3 / beta), 1.0)
        return float(tilted[:2].sum() / tilted.sum())

    enough = math.ceil(3 / beta / math.log(GOING_ON))
    assert early(enough + 20) < 1e-5
    assert early(max(3, enough // 2)) > 0.1


def test_a_higher_alpha_helps_only_where_it_is_kl() -> None:
    cut = {alpha: Toy(ConditionalMatching(alpha), limit=64).lengths()[1] for alpha in (0.1, 0.25, 0.4, 0.45)}
    assert cut[0.25] > cut[0.1]  # the end is no longer supported
    assert cut[0.4] > cut[0.1]
    assert cut[0.45] == pytest.approx(Toy(KL(), limit=64).lengths()[1])


def test_a_cost_above_the_logarithm_of_the_weights_is_enough() -> None:
    means = {extra: [Toy(MATCHING, TokenCost(math.log(GOING_ON) + extra), n).mean_length() for n in (64, 512)]
             for extra in (-0.1, 0.1)}  # fmt: skip
    assert means[-0.1][1] > 400
    assert means[0.1][1] == pytest.approx(1 / (1 - math.exp(-0.1)), abs=0.01)
    assert means[0.1][0] == pytest.approx(means[0.1][1], rel=0.02)


def test_averaged_penalties_hold_the_mean_length_at_any_limit() -> None:
    """The sum of M^(n - 1) c^n is 1 for c = 1 / (1 + M): the tokens that are supported, uniformly."""
    for limit in (64, 512):
        toy = Toy(MATCHING, MeanPenalty(), limit)
        assert toy.mean_length() == pytest.approx(GOING_ON + 1, abs=1e-6)
        assert toy.lengths()[1] < 1e-9


def test_kl_after_some_tokens_adds_the_mean_length_of_the_reference() -> None:
    means = [Toy(MATCHING, KLAfter(8), limit).mean_length() for limit in (128, 512)]
    assert means[0] == pytest.approx(means[1], abs=1e-6)
    assert 8 < means[1] < 8 + 5


@pytest.mark.parametrize("length", [MeanPenalty(), KLAfter(1)], ids=repr)
def test_training_by_the_exact_gradient_gets_there(length: LengthControl) -> None:
    toy = Toy(MATCHING, length, limit=2, beta=0.8)
    score = torch.randn(13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem, lengths, _ = toy.listed(score)
    first = torch.tensor([END, 0, 1, 2] + [word for word in range(END) for _ in range(END)])
    second = torch.tensor([0, END, END, END] + [*range(END)] * END)
    rows = torch.zeros(END + 1, END + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([rows], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        log_probs = rows.log_softmax(-1)
        later = torch.where(lengths == 2, log_probs[(first + 1) % (END + 1), second], 0.0)
        tokens = torch.stack([log_probs[0, first], later], 1)
        (-problem.value(tokens)).backward()
        optimizer.step()
    reached = tokens.detach().sum(-1).exp()
    torch.testing.assert_close(reached, problem.optimum().exp(), rtol=0, atol=1e-3)
    plain, _, _ = Toy(MATCHING, limit=2, beta=0.8).listed(score)
    assert float((reached - plain.optimum().exp()).abs().max()) > 0.02
