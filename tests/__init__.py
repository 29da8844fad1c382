"""The tests, and the type checker that pytest applies to functions of the package that work on tensors."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Accepts an int where a float is expected."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the types of a function at module level or of a class; one inside a function is made at every call."""
    return function if "<locals>" in function.__qualname__ else _typed(function)
