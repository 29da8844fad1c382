"""Test cases that are marked with rows of the fault list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def cases(rows: Iterable[str]) -> list[Any]:
    """One case for each row, marked with it; ``A05b variant`` is a further case of A05b."""
    return [pytest.param(row, id=row, marks=pytest.mark.fault(row.split()[0])) for row in rows]
