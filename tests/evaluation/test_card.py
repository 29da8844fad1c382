"""The evaluation in a model card: whose card it is, and what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.evaluation.card import card_of, write_into_card
from lit_align.evaluation.record import MetricEstimate, ModelRecord

CARD = """---
library_name: transformers
---

# testbed:policy, trained on preferences

- optimizer steps: 40
- made with lit_align 0.1.0; `config.yaml` of the run has all other settings

## Sources

- a paper
"""
MODEL = ModelRecord(
    "dpo",
    "runs/dpo",
    {
        "prompts": {"source": "testbed:test", "count": 24},
        "judge": {"key": "hf_abcdefghijklmnopqrstuv"},
        "weights": "w",
    },
    {"win_rate": MetricEstimate(0.625, 0.5, 0.75, 24), "distinct_1/corpus": MetricEstimate(0.25, n=24)},
)


@pytest.fixture
def card(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(CARD)
    return tmp_path / "README.md"


def test_numbers_intervals_and_settings_are_written_once(card: Path) -> None:
    for _ in range(2):
        write_into_card(card, MODEL, Path("runs/evaluation"))
    text = card.read_text("utf-8")
    assert text.count("## Evaluation") == 1
    assert "| win_rate | 0.625 | 0.5 to 0.75 |" in text
    assert "| distinct_1/corpus | 0.25 |  |" in text
    assert '"source": "testbed:test"' in text
    assert "hf_abcdefghijklmnopqrstuv" not in text
    assert text.index("## Evaluation") < text.index("## Sources\n\n- a paper\n")
    before, _, rest = text.partition("<!-- evaluation -->")
    assert before + rest.partition("<!-- /evaluation -->\n\n")[2] == CARD


def test_a_card_without_sources_gets_it_at_its_end(card: Path) -> None:
    card.write_text("- made with lit_align 0.1.0\n")
    write_into_card(card, MODEL, Path("runs/evaluation"))
    assert card.read_text("utf-8").startswith("- made with lit_align 0.1.0\n\n<!-- evaluation -->\n## Evaluation\n")


def test_the_card_must_be_of_the_weights_and_of_a_run(card: Path, tmp_path: Path) -> None:
    assert card_of(tmp_path) == card_of(tmp_path, 40) == card
    assert card_of(tmp_path, 39) is None, "the run has gone on, or has not come so far"
    card.write_text(CARD.replace("- made", "- weights: the best by val/loss\n- made"))
    assert card_of(tmp_path, 40) is None, "the newest checkpoint may be another one"
    card.write_text("# a model of others\n")
    assert card_of(tmp_path) is None
    assert card_of(tmp_path / "none") is None
