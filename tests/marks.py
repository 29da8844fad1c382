"""Marks the tests that start runs, so that `tools/check` can leave most of them to the gate."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any

import pytest

STARTS = {
    ("tests.runner", "fork"),
    ("lightning.pytorch.trainer.trainer", "Trainer"),
    ("lit_align.plan.estimate", "estimate"),  # a dry run
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marker ``runs`` before tests are selected by their markers."""
    for item in items:
        if isinstance(item, pytest.Function) and any(map(starts_run, functions_of(item))):
            item.add_marker("runs")


def functions_of(test: pytest.Function) -> Iterator[Callable[..., Any]]:
    """Yield a test's function and those of the fixtures that it uses."""
    yield inspect.unwrap(test.function)
    for definitions in test._fixtureinfo.name2fixturedefs.values():
        yield definitions[-1].func


@cache
def starts_run(function: Callable[..., Any]) -> bool:
    """Return whether a function reaches a trainer or a new process by the names that it reads."""
    pending: list[Any] = [function]
    seen: set[Callable[..., Any]] = set()
    while pending:
        value = pending.pop()
        if value is subprocess or name_of(value) in STARTS:
            return True
        if inspect.isfunction(value) and value.__module__.startswith("tests.") and value not in seen:
            seen.add(value)
            pending += [value.__globals__[name] for name in names_in(value.__code__) if name in value.__globals__]
    return False


def name_of(value: object) -> tuple[object, object]:
    """Return module and name, as importing what starts runs would import everything that a run needs."""
    return getattr(value, "__module__", None), getattr(value, "__qualname__", None)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that a function reads, and the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)
