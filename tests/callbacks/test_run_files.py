"""Predictions are written next to the data's own columns."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runner import BASE, QUIET, lit_align, ok


def test_no_column_of_the_data_is_lost(rows: Path, tmp_path: Path) -> None:
    """One column has the name of a prediction, one the name that this would be renamed to, one a free name."""
    given = [json.loads(line) for line in rows.read_text("utf-8").splitlines()[:3]]
    own = [{"margin": number + 0.5, "data/margin": "x", "rater": f"r{number}"} for number in range(3)]
    lines = [json.dumps({**row, **more}) for row, more in zip(given, own, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    command = ("--run", tmp_path / "run", *BASE, *QUIET, "--model.objective", "odpo")
    ok(lit_align("predict", *command, "--data.predict", tmp_path / "pairs.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text("utf-8").splitlines()]
    kept = ("data/data/margin", "data/margin", "rater")
    assert [tuple(line[name] for name in kept) for line in found] == [(n + 0.5, "x", f"r{n}") for n in range(3)]
    assert [line["margin"] for line in found] == [0.0, 0.0, 0.0]
    texts = ("prompt", "chosen", "rejected")
    assert [[line[name] for name in texts] for line in found] == [[row[name] for name in texts] for row in given]
