"""Settings that a resumed run takes from its earlier part."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.cli.run_setup import stored_date


@pytest.mark.parametrize("day", ["2024-07-26", "'2024-07-26'"])
def test_the_date_of_a_run_is_that_of_its_first_start(tmp_path: Path, day: str) -> None:
    (tmp_path / "config.yaml").write_text(f"data:\n  template_date: {day}\n", "utf-8")
    assert stored_date(tmp_path, "last") == stored_date(tmp_path, None) == "2024-07-26"
    assert stored_date(tmp_path / "other", str(tmp_path / "checkpoints" / "step=2.ckpt")) == "2024-07-26"


@pytest.mark.parametrize("text", [None, "", "data: {}", "data:\n  template_date: null", "[", "data: 3"])
def test_a_run_that_stored_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text, "utf-8")
    assert stored_date(tmp_path, "last") is None
