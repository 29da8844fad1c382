"""Test cases that are marked with rows of the fault list."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def cases(rows: Iterable[str]) -> list[Any]:
    """Return one case per row, marked with the row; ``A05b variant`` is another case of A05b."""
    return [pytest.param(row, id=row, marks=pytest.mark.fault(row.split()[0])) for row in rows]
