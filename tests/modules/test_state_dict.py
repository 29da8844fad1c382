"""A checkpoint contains the trained weights of a run with an adapter, and all weights otherwise."""

from __future__ import annotations

import pytest
from torch import nn

from lit_align.models import LoRA
from lit_align.modules.build import check_state_dict, trainable_state_dict


@pytest.fixture
def half() -> nn.Module:
    """A module of two layers, of which the second is trained."""
    stack = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    stack[0].requires_grad_(False)
    return stack


def test_all_without_an_adapter(half: nn.Module) -> None:
    assert trainable_state_dict(half, None, half.state_dict()).keys() == {"0.weight", "1.weight"}
    check_state_dict(half, None, {})


def test_what_trains_with_one(half: nn.Module) -> None:
    found = trainable_state_dict(half, LoRA(), half.state_dict())
    assert found.keys() == {"1.weight"}
    check_state_dict(half, LoRA(), found)


@pytest.mark.parametrize("names", [[], ["0.weight", "1.weight"]])
def test_weights_of_another_adapter_are_refused(half: nn.Module, names: list[str]) -> None:
    with pytest.raises(ValueError, match="not those of this run's adapter"):
        check_state_dict(half, LoRA(), dict.fromkeys(names))
