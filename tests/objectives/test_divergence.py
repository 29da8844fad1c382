from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lit_align.objectives import Alpha, Divergence, ForwardKL, JensenShannon, ReverseKL
from lit_align.objectives.divergence import LARGEST_EXPONENT

GENERATORS: list[tuple[Divergence, Callable[[torch.Tensor], torch.Tensor]]] = [
    (ReverseKL(), lambda u: u * u.log()),
    (ForwardKL(), lambda u: -u.log()),
    (JensenShannon(), lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log()),
    # the paper's order is 1 - 0.3: f(u) = (u^{1-a} - (1 - a) u - a) / (a (a - 1)), a = 0.7
    (Alpha(0.3), lambda u: (u**0.3 - 0.3 * u - 0.7) / (0.7 * (0.7 - 1))),
]


@pytest.mark.parametrize(("divergence", "generator"), GENERATORS, ids=[repr(pair[0]) for pair in GENERATORS])
def test_the_score_is_the_derivative_of_the_generator_up_to_a_constant(
    divergence: Divergence, generator: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    ratio = torch.tensor([[0.2, 0.9], [1.7, 5.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(generator(ratio).sum(), ratio)
    constant = divergence(ratio.log()) - slope
    torch.testing.assert_close(constant, constant[:1, :1].expand(2, 2))


@pytest.mark.parametrize(("divergence", "generator"), GENERATORS, ids=[repr(pair[0]) for pair in GENERATORS])
def test_the_generator_is_convex_so_that_the_score_increases(
    divergence: Divergence, generator: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    values = generator(torch.linspace(0.1, 5, 100, dtype=torch.float64))
    assert (values.diff().diff() > 0).all()


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (ReverseKL(), math.log(4)),
        (ForwardKL(), 0.75),  # 1 - 1/4
        (JensenShannon(), math.log(8 / 5)),  # log(2 · 4/5)
        (Alpha(0.5), 1.0),  # (1 - 1/2) / (1/2)
    ],
    ids=repr,
)
def test_golden(divergence: Divergence, expected: float) -> None:
    assert divergence(torch.tensor([[math.log(4.0)]])).item() == pytest.approx(expected, rel=1e-6)


def test_small_log_ratios_keep_their_digits() -> None:
    small = torch.tensor([[1e-6, -3e-6]])
    torch.testing.assert_close(ForwardKL()(small), small, rtol=1e-5, atol=0)
    torch.testing.assert_close(Alpha(0.5)(small), small, rtol=1e-5, atol=0)


def test_the_exponential_is_exact_up_to_its_limit_and_a_tangent_beyond() -> None:
    limit = LARGEST_EXPONENT
    log_ratio = torch.tensor([[-limit + 1e-9, -limit - 10]], dtype=torch.float64, requires_grad=True)
    score = ForwardKL()(log_ratio)
    (slope,) = torch.autograd.grad(score.sum(), log_ratio)
    top = math.exp(limit)
    torch.testing.assert_close(score.detach(), torch.tensor([[1 - top, 1 - 11 * top]], dtype=torch.float64))
    torch.testing.assert_close(slope, torch.full((1, 2), top, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="Alpha.alpha"):
        Alpha(alpha)


@pytest.mark.parametrize("divergence", [ReverseKL(), ForwardKL(), JensenShannon(), Alpha(0.3)], ids=repr)
def test_gradient(divergence: Divergence) -> None:
    log_ratio = torch.tensor([[-2.0, 0.3], [1.5, -0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(divergence, (log_ratio,))
