"""The vocabulary projection compared with whole logits, and its peak memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_align.models.lm_head import projection
from lit_align.models.lm_head.projection import LogitRule, Workspace
from lit_align.models.lm_head.recompute import LinearHead

TINY = 1e-6
"""Megabytes that hold no row, so that a tile has the least rows that it can have."""
RULES = [LogitRule(), LogitRule(scale=0.3), LogitRule(cap=2.0), LogitRule(scale=1.7, cap=3.0)]


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes, and how many rows of logits there were."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numel, self.projected = vocabulary, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {part.untyped_storage().data_ptr() for part in args if _dense(part)}
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if _dense(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, tensor.numel())
        if func._overloadpacket is torch.ops.aten.mm and out.shape[1] == self.vocabulary:
            self.projected += out.shape[0]
        return out


def _dense(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_sparse


def sizes(tokens: int, vocabulary: int, width: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Hidden states, weight, bias, targets."""
    made = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(*shape, generator=made, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
    )
    return hidden, weight, bias, torch.randint(vocabulary, (tokens,), generator=made)


def whole(hidden: Tensor, weight: Tensor, bias: Tensor | None, rule: LogitRule) -> Tensor:
    """All log-probabilities by autograd."""
    logits = hidden @ weight.t()
    logits = (logits if bias is None else logits + bias) * rule.scale
    return (logits if rule.cap is None else rule.cap * (logits / rule.cap).tanh()).log_softmax(-1)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("megabytes", [TINY, 64.0])
def test_values_and_gradients_are_those_of_whole_logits(rule: LogitRule, biased: bool, megabytes: float) -> None:
    hidden, weight, bias, targets = sizes(37, 23)
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    slopes = torch.linspace(-1, 2, 37, dtype=torch.float64)
    head = LinearHead(weight, bias if biased else None, rule, Workspace(megabytes))
    values = head.values(hidden, targets, collision=True)
    logs = whole(hidden, weight, bias if biased else None, rule)
    torch.testing.assert_close(values.log_probs, logs.gather(1, targets[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values.collision, (2 * logs).logsumexp(-1), rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad((values.log_probs * slopes).sum(), inputs)
    truth = torch.autograd.grad((logs.gather(1, targets[:, None])[:, 0] * slopes).sum(), inputs)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_numbers_by_hand() -> None:
    """Equal logits: each of V tokens has 1/V, so log Σ π² = −log V.

    With logits (log 3, 0): π = (3/4, 1/4), Σ π² = 10/16.
    """
    even = LinearHead(torch.zeros(5, 2), None, LogitRule(), Workspace()).values(
        torch.ones(1, 2), torch.tensor([3]), True
    )
    assert even.collision is not None
    expected = pytest.approx([-math.log(5), -math.log(5)], abs=1e-6)
    assert [even.log_probs.item(), even.collision.item()] == expected
    weight = torch.tensor([[math.log(3)], [0.0]])
    uneven = LinearHead(weight, None, LogitRule(), Workspace()).values(torch.ones(2, 1), torch.tensor([0, 1]), True)
    assert uneven.log_probs.tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 4)], abs=1e-6)
    assert uneven.collision is not None
    assert uneven.collision.tolist() == pytest.approx([math.log(10 / 16)] * 2, abs=1e-6)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_logits_stay_finite(scale: float) -> None:
    hidden, weight, _, targets = sizes(9, 50, dtype=torch.float32)
    head = LinearHead(weight, None, LogitRule(scale=scale), Workspace())
    values = head.values(hidden, targets, collision=True)
    assert values.collision is not None
    assert all(bool(part.isfinite().all()) for part in (values.log_probs, values.collision))
    (gradient,) = torch.autograd.grad(values.log_probs.sum(), hidden)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("vocabulary", [2_000, 8_000])
def test_no_more_than_a_tile_of_logits_is_held(vocabulary: int) -> None:
    """64 tokens would be 64 · V logits; the least tile has 16 rows. Whole logits would be seen."""
    hidden, weight, _, targets = sizes(64, vocabulary, dtype=torch.float32)
    head = LinearHead(weight, None, LogitRule(), Workspace(TINY))
    with Largest(vocabulary) as seen:
        head.values(hidden, targets, collision=True).log_probs.sum().backward()
    assert seen.numel == 16 * vocabulary
    with Largest(vocabulary) as wrong:
        whole(hidden, weight, None, LogitRule()).sum().backward()
    assert wrong.numel == 64 * vocabulary


def test_frozen_weights_get_no_gradient_and_no_memory() -> None:
    hidden, weight, _, targets = sizes(5, 4_000)
    head = LinearHead(weight.detach(), None, LogitRule(), Workspace(TINY))
    values = head.values(hidden, targets).log_probs
    with Largest(4_000) as seen:
        values.sum().backward()
    assert hidden.grad is not None
    assert seen.numel == 5 * 4_000  # a tile of five rows, and no gradient of 4000 · 7


def test_nothing_is_kept_without_gradient() -> None:
    hidden, weight, _, targets = sizes(5, 11)
    with torch.no_grad():
        assert LinearHead(weight, None, LogitRule(), Workspace()).values(hidden, targets).log_probs.grad_fn is None


def test_the_tile_is_used_again_and_may_be_born_in_inference_mode() -> None:
    hidden, weight, _, targets = sizes(5, 11)
    workspace = Workspace()
    head = LinearHead(weight, None, LogitRule(), workspace)
    with torch.inference_mode():
        head.values(hidden, targets)
    first = workspace.tile(5, weight).data_ptr()
    head.values(hidden, targets).log_probs.sum().backward()
    assert workspace.tile(3, weight).data_ptr() == first
    assert weight.grad is not None


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32() -> None:
    """As a linear layer under autocast does; the softmax and what comes out are float32."""
    hidden, weight, bias, targets = sizes(40, 30, dtype=torch.float32)
    exact = whole(hidden, weight, bias, LogitRule()).gather(1, targets[:, None])[:, 0]
    truth = torch.autograd.grad(exact.sum(), [hidden, weight, bias])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = LinearHead(weight, bias, LogitRule(), Workspace(TINY)).values(hidden, targets).log_probs
    found = torch.autograd.grad(values.sum(), [hidden, weight, bias])
    assert values.dtype == torch.float32
    assert 1e-5 < float((values - exact).detach().abs().max()) < 0.1  # rounded, but no more than that
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_bfloat16_weights_give_float32_values_and_bfloat16_gradients() -> None:
    hidden, weight, _, targets = sizes(40, 30, dtype=torch.bfloat16)
    values = LinearHead(weight, None, LogitRule(), Workspace()).values(hidden, targets).log_probs
    assert values.dtype == torch.float32
    values.sum().backward()
    assert weight.grad is not None
    assert hidden.grad is not None
    assert (weight.grad.dtype, hidden.grad.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_of_an_odd_vocabulary_begin_at_even_places_on_devices(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and their gradient, which no result depends on: each row is followed by memory that is not read."""
    results = []
    for step in (1, 8):
        monkeypatch.setitem(projection.ROW_STEP, "cpu", step)
        hidden, weight, bias, targets = sizes(40, 13, dtype=dtype)
        workspace = Workspace(TINY)
        workspace.tile(16, weight).fill_(float("nan"))
        values = LinearHead(weight, bias, LogitRule(), workspace).values(hidden, targets)
        values.log_probs.square().sum().backward()
        assert workspace.tile(16, weight).stride() == (16 if step == 8 else 13, 1)
        results.append([values.log_probs, *(part.grad for part in (hidden, weight, bias))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
