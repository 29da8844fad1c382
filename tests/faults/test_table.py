"""Every row of the lists has a test, and the tables report the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rows import ELSEWHERE, FAULTS, SECURITY
from tests.tables import LISTED, marked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LISTS = [("fault", FAULTS), ("security", SECURITY)]


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> pytest.Config:
    """The configuration of a session that has collected every test, including deselected ones."""
    given = [Path(str(word).split("::")[0]).resolve() for word in request.config.args]
    if not any(ROOT.is_relative_to(path) for path in given) or any("::" in word for word in request.config.args):
        pytest.skip("not all tests were collected")
    return request.config


@pytest.mark.parametrize(("name", "rows"), LISTS, ids=["faults", "security"])
def test_every_row_has_a_test(whole: pytest.Config, name: str, rows: dict[str, str]) -> None:
    shown = marked(whole)[name].keys() | (ELSEWHERE.keys() if name == "fault" else set())
    assert not [f"{row}: {what}" for row, what in rows.items() if row not in shown]


@pytest.mark.parametrize(("name", "rows"), LISTS, ids=["faults", "security"])
def test_every_mark_names_a_row(whole: pytest.Config, name: str, rows: dict[str, str]) -> None:
    assert not {row: tests for row, tests in marked(whole)[name].items() if row not in rows}


def test_a_row_that_is_shown_elsewhere_is_in_the_list_and_says_why() -> None:
    assert ELSEWHERE.keys() <= FAULTS.keys()
    assert all(ELSEWHERE.values())


TESTS = """
import pytest

@pytest.mark.fault("A01")
def test_good(): pass

@pytest.mark.fault("A01", "A02")
@pytest.mark.security(3)
def test_bad(): assert False

@pytest.mark.fault("A03")
@pytest.mark.skip(reason="not here")
def test_skipped(): pass

@pytest.mark.fault("A04")
@pytest.mark.xfail
def test_expected_to_fail(): assert False

@pytest.mark.fault("A05")
@pytest.mark.slow
def test_deselected(): pass

@pytest.fixture
def broken(): raise RuntimeError

@pytest.mark.fault("A06")
def test_without_its_fixture(broken): pass

@pytest.fixture
def left(): 
    yield
    raise RuntimeError

@pytest.mark.fault("A08")
def test_whose_end_fails(left): pass

@pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.fault("A09")), 2])
@pytest.mark.partition("one process or two")
@pytest.mark.resume("inside an epoch")
def test_cases(case): pass

@pytest.mark.fault("Z99")
def test_of_no_row(): pass
"""


@pytest.fixture
def said(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> dict[str, str]:
    """Row → its line, of a run of these tests with more words on the command line."""
    pytester.makepyfile(test_some=TESTS)
    pytester.makeconftest(f"import sys; sys.path.insert(0, {str(ROOT.parent)!r}); pytest_plugins = ['tests.tables']")
    found = pytester.runpytest_inprocess("-m", "not slow", "-q", *request.param)
    return {line.split("  ")[0].strip(): line for line in found.outlines if "  " in line}


PROCESSES = [
    pytest.param(("--tables", "-n", "0"), id="alone"),
    pytest.param(("--tables", "-n", "1"), id="in a process of its own"),
]


@pytest.mark.parametrize("said", PROCESSES, indirect=True)
def test_the_tables_say_what_became_of_the_tests(said: dict[str, str]) -> None:
    """Skipped, deselected and xfailed tests do not count as passed; one failure fails a row."""
    state = {row: line.split("  ")[-1].strip() for row, line in said.items()}
    assert state["A01"] == state["A02"] == state["3"] == state["A06"] == state["A08"] == "FAILED"
    assert state["A03"] == state["A04"] == "no test passed"
    assert state["A05"] == state["A10"] == "no test"
    assert state["A09"] == "passed"
    assert "1 passed, 1 failed" in said["A01"]
    assert FAULTS["A01"] in said["A01"]
    assert SECURITY["3"] in said["3"]
    assert state["one process or two"] == state["inside an epoch"] == "passed"
    assert "2 passed" in said["inside an epoch"]
    assert "not in the list" in said["Z99"]


@pytest.mark.parametrize("said", [("-n", "0")], indirect=True)
def test_without_the_option_nothing_is_printed(said: dict[str, str]) -> None:
    assert not said.keys() & FAULTS.keys()


def test_the_lists_are_those_that_are_printed() -> None:
    assert dict(LISTS) == LISTED
