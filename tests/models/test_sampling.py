"""Settings are checked, seeds are independent, and the choice of a token does not wait for its device."""

from __future__ import annotations

import pytest
import torch

from lit_align.models.sampling import RowSampling, Sampling, mix_seed, uniform_numbers
from tests.standin import OnDevice, standin


def test_seeds_of_neighbouring_numbers_differ() -> None:
    numbers = [mix_seed(seed, row, number) for seed in range(10) for row in range(20) for number in range(5)]
    assert len(set(numbers)) == 1000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens"), ({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")],
)
def test_ranges(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_random_numbers_are_moved_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a column for each token; sampling itself waits for nothing."""
    seeds = [1, 2, 3]
    logits = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    here = RowSampling(uniform_numbers(seeds, 4), Sampling(top_p=0.9))
    expected = [here(None, logits) for _ in range(4)]
    with standin(monkeypatch) as waits:
        away, moved = RowSampling(uniform_numbers(seeds, 4), Sampling(top_p=0.9)), OnDevice(logits)
        chosen = [away(None, moved) for _ in range(4)]
        assert not waits
        assert isinstance(away.numbers, OnDevice)
    for one, other in zip(chosen, expected, strict=True):
        assert torch.equal(one.inner, other)
