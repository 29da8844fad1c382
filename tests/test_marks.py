"""Tests that start runs carry the marker ``runs``, and no others do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from lightning.pytorch import LightningModule, Trainer

from tests.marks import starts_run
from tests.runner import lit_align


def by_a_helper() -> None:
    lit_align("fit")


def inside_a_function() -> Callable[[], None]:
    return lambda: by_a_helper()


def as_a_process() -> None:
    subprocess.run(["true"], check=True)


def in_this_process() -> None:
    Trainer(logger=False).fit(LightningModule())


def never() -> int:
    return len("lit_align")


@pytest.mark.parametrize("function", [lit_align, by_a_helper, inside_a_function, as_a_process, in_this_process])
def test_a_function_that_starts_a_run_is_recognised(function: Callable[[], object]) -> None:
    assert starts_run(function)
    assert not starts_run(never)


@pytest.fixture
def start() -> Callable[[], None]:
    return by_a_helper


def test_a_fixture_that_starts_a_run_marks_its_tests(
    start: Callable[[], None], request: pytest.FixtureRequest
) -> None:
    assert request.node.get_closest_marker("runs")


def test_other_tests_are_not_marked(request: pytest.FixtureRequest) -> None:
    assert not request.node.get_closest_marker("runs")
