from __future__ import annotations

from types import SimpleNamespace

import pytest

from lit_align.objectives.ranges import check_range


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1]"), (1, "[0, 1]"), (0.5, "(0, 1)"), (1e300, "(0, inf)"), (-3, "(-inf, inf)"), (0.4999, "[0, 0.5)")],
)
def test_accepts_what_is_inside(value: float, interval: str) -> None:
    check_range(SimpleNamespace(key=value), "key", interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (-1e-9, "[0, 1]"),
        (1 + 1e-9, "[0, 1]"),
        (0, "(0, 1)"),
        (1, "(0, 1)"),
        (0.5, "[0, 0.5)"),
        (float("inf"), "(0, inf)"),
        (float("inf"), "[0, inf]"),
        (float("nan"), "(-inf, inf)"),
    ],
)
def test_refuses_what_is_outside_or_not_finite(value: float, interval: str) -> None:
    with pytest.raises(ValueError, match="SimpleNamespace.key is .*; expected a finite number in") as error:
        check_range(SimpleNamespace(key=value), "key", interval)
    assert interval in str(error.value)
