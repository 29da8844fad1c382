from __future__ import annotations

import json

import pytest

from lit_align.data.prepared.row_counts import BadRows, RowCounts
from lit_align.errors import DataError


def counts(*lines: int) -> RowCounts:
    found = RowCounts(read=10 * len(lines), kept=8, too_long=1)
    for line in lines:
        found.add_error(DataError(f"a.jsonl:{line}", f"found {line}: odd", "chosen[0]"))
    found.notes["seen"] += len(lines)
    return found


def test_later_rows_are_added_behind_the_first_ones() -> None:
    whole = counts(*range(1, 8))
    whole.add(counts(*range(8, 15)))
    assert whole.read == 140
    assert (whole.kept, whole.too_long, whole.notes["seen"]) == (16, 2, 14)
    assert [error.where for error in whole.first] == [f"a.jsonl:{line}" for line in range(1, 11)]
    assert sum(whole.dropped.values()) == 16


def test_it_is_the_same_after_json() -> None:
    found = counts(1, 2)
    again = RowCounts.from_json(json.loads(json.dumps(found.as_json())))
    assert again.as_json() == found.as_json()
    messages = []
    for each in (found, again):
        with pytest.raises(DataError) as caught:
            each.check("a.jsonl", BadRows())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "a.jsonl:1: chosen[0]: found 1: odd" in messages[0]
    again.check("a.jsonl", BadRows("drop", 0.5))
