"""Schedules over a whole run."""

from __future__ import annotations

import pytest

from lit_align.modules import Constant, Cosine, Linear, Schedule


@pytest.mark.parametrize("schedule", [Constant(0.2), Linear(0.2), Cosine(0.2), Cosine(0.2, floor=0.1)])
def test_rises_to_one_and_never_rises_again(schedule: Schedule) -> None:
    factors = [schedule.factor(step, 50) for step in range(50)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[0] > 0
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_where_they_end() -> None:
    assert Constant().factor(99, 100) == 1.0
    assert Linear().factor(99, 100) == pytest.approx(1 / 90)
    assert Cosine().factor(99, 100) < 0.001
    assert Cosine(floor=0.1).factor(99, 100) == pytest.approx(0.1, abs=1e-3)


def test_a_step_beyond_the_end_stays_at_the_end() -> None:
    assert Linear().factor(120, 100) == 0.0


@pytest.mark.parametrize("wrong", [-0.1, 1.0, float("nan")])
def test_ranges(wrong: float) -> None:
    for part in (Constant, Linear, Cosine):
        with pytest.raises(ValueError, match=f"{part.__name__}: warmup is"):
            part(warmup=wrong)
