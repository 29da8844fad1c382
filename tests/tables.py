"""Four tables of what the tests show: faults, security, equal results in any partition and after resuming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.rows import ELSEWHERE, FAULTS, SECURITY

LISTED: dict[str, Mapping[str, str]] = {"fault": FAULTS, "security": SECURITY}
TITLES = {
    "fault": "What may go wrong",
    "security": "What must not be possible",
    "partition": "The same however the work is cut",
    "resume": "The same after going on",
}
"""Marker → title of its table; the rows of the first two are listed, those of the others are what tests say."""
COUNTED = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
_MARKED = pytest.StashKey[dict[str, dict[str, list[str]]]]()


@dataclass
class Row:
    """Number of tests of a row by their outcome."""

    what: str
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def state(self) -> str:
        """State of the row: ``passed`` only if a test passed and none failed."""
        if self.ended["failed"] + self.ended["error"] + self.ended["xpassed"]:
            return "FAILED"
        if self.ended["passed"]:
            return "passed"
        return "no test passed" if self.ended.total() else "no test"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tables", action="store_true", help="print what the suite shows: one line a fault or promise")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add markers to ``user_properties``, which pytest-xdist sends to the process that reports."""
    tests: dict[str, dict[str, list[str]]] = {name: {} for name in TITLES}
    for item in items:
        for name, found in tests.items():
            for row in dict.fromkeys(str(row) for mark in item.iter_markers(name) for row in mark.args):
                item.user_properties.append((name, row))
                found.setdefault(row, []).append(item.nodeid)
    config.stash[_MARKED] = tests


def marked(config: pytest.Config) -> Mapping[str, Mapping[str, list[str]]]:
    """Return marker → row → tests with this mark, of all collected tests, including deselected ones."""
    return config.stash[_MARKED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--tables"):
        return
    for name, rows in tables(terminalreporter.stats).items():
        terminalreporter.section(TITLES[name])
        wide = max((len(key) for key in rows), default=0)
        for key, row in rows.items():
            ended = ", ".join(f"{row.ended[how]} {how}" for how in COUNTED if row.ended[how]) or "-"
            reason = f" ({ELSEWHERE[key]})" if name == "fault" and key in ELSEWHERE else ""
            said = f"{key:<{wide}}  {row.what:<62}" if row.what else f"{key:<{wide}}"
            terminalreporter.line(f"{said}  {ended:<24}  {row.state}{reason}")
        passed = sum(row.state == "passed" for row in rows.values())
        terminalreporter.line(f"{passed} of {len(rows)} rows passed")


def tables(stats: Mapping[str, Iterable[Any]]) -> dict[str, dict[str, Row]]:
    """Return the rows of each table, in the order of its list, or sorted by name.

    Args:
        stats: how tests ended → their reports, as the terminal reporter keeps them. Deselected tests have none.
    """
    found = {name: {key: Row(what) for key, what in LISTED.get(name, {}).items()} for name in TITLES}
    for how in COUNTED:
        for report in stats.get(how, ()):
            for name, key in getattr(report, "user_properties", ()):
                if name in found:
                    found[name].setdefault(key, Row("" if name not in LISTED else "not in the list")).ended[how] += 1
    return {name: rows if name in LISTED else dict(sorted(rows.items())) for name, rows in found.items()}
