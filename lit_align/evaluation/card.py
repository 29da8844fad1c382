"""The evaluation in the model card of a policy that a run has exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lit_align.errors import without_secrets
from lit_align.evaluation.record import ModelRecord, write_whole

CARD = "README.md"
OPEN, CLOSE = "<!-- evaluation -->", "<!-- /evaluation -->"
_OWN = "- made with lit_align "
_NEXT = "## Sources\n"
_SETTINGS = ("prompts", "seeds", "sampling", "judge", "judges", "baseline", "reference", "pairs", "tasks", "versions")


def card_of(folder: Path, step: int | None = None) -> Path | None:
    """Return the model card of an exported policy; None without one that a run has written.

    Args:
        folder: of the exported policy.
        step: optimizer steps of the weights that are evaluated, which must be those of the card; None if they are
            those of the folder.
    """
    card = folder / CARD
    text = card.read_text("utf-8") if card.is_file() else ""
    steps = re.search(r"^- optimizer steps: (\d+)$", text, re.MULTILINE)
    is_same = step is None or (steps is not None and int(steps[1]) == step and "\n- weights: " not in text)
    return card if _OWN in text and is_same else None


def write_into_card(card: Path, model: ModelRecord, folder: Path) -> None:
    """Write the numbers of an evaluation into a model card, in place of those of an earlier one.

    Args:
        card: of the exported policy.
        model: its evaluation.
        folder: of the evaluation.
    """
    text, section = card.read_text("utf-8"), evaluation_section(model, folder)
    if OPEN in text and CLOSE in text:
        before, after = text.split(OPEN, 1)[0], text.split(CLOSE, 1)[1]
        write_whole(card, before + section + after)
    else:
        head, found, rest = text.partition(_NEXT)
        write_whole(card, f"{head}{section}\n\n{found}{rest}" if found else f"{text.rstrip()}\n\n{section}\n")


def evaluation_section(model: ModelRecord, folder: Path) -> str:
    """Return the numbers of an evaluation with their intervals and settings, in Markdown between two marks.

    Args:
        model: the evaluation.
        folder: of the evaluation.
    """
    settings = {name: model.settings[name] for name in _SETTINGS if model.settings.get(name)}
    rows = [
        f"| {name} | {number.value:.4g} | {'' if number.low is None else f'{number.low:.4g} to {number.high:.4g}'} |"
        for name, number in model.metrics.items()
    ]
    lines = (
        OPEN,
        "## Evaluation\n",
        f"By `python -m lit_align evaluate`, from `{folder.name}/evaluation.json`.\n",
        "| metric | value | 95 % interval |\n|---|---|---|",
        *rows,
        f"\n```json\n{without_secrets(json.dumps(settings, indent=2, ensure_ascii=False, default=str))}\n```",
        CLOSE,
    )
    return "\n".join(lines)
