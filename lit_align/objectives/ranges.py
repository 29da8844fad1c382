"""A range is the interval of numbers that a part accepts for one of its fields."""

from __future__ import annotations

import math


def check_range(part: object, key: str, interval: str) -> None:
    """Raise unless a field of a part is a finite number inside an interval.

    Args:
        part: the object whose field is checked.
        key: name of the field.
        interval: the accepted numbers as one writes them on paper, ``(0, inf)`` or ``[0, 0.5)``: a round bracket
            leaves the end out, a square one keeps it in.

    Raises:
        ValueError: the number is outside; the message names the class, the field, what was found and what is accepted.

    >>> from lit_align.objectives import Logistic
    >>> Logistic(beta=-0.1)
    Traceback (most recent call last):
    ValueError: Logistic.beta is -0.1; expected a finite number in (0, inf)
    """
    found = float(getattr(part, key))
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = found >= low if interval.startswith("[") else found > low
    below = found <= high if interval.endswith("]") else found < high
    if not (math.isfinite(found) and above and below):
        raise ValueError(f"{type(part).__name__}.{key} is {found}; expected a finite number in {interval}")
