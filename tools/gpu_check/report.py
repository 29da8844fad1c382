"""Markdown of what a check has written."""

from __future__ import annotations

from typing import Any

LEFT_OUT = ("case", "where", "steps")
ENDS = {0: "", "not ended": "; the check ended before this stage did"}


def report(result: dict[str, Any]) -> str:
    """Return a section for each stage: a table with a row per case; stages that did not end say so."""
    sections = []
    for stage, ended in result["stages"].items():
        how = ENDS.get(ended["ended"], f"; {ended['ended']}")
        lines = [f"## {stage}", f"{ended['seconds']:g} s{how}"]
        cases = result.get(stage, [])
        columns = list(dict.fromkeys(key for case in cases for key in case if key not in LEFT_OUT))
        if cases:
            rows = [f"| case | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
            rows += [f"| {case['case']} | {' | '.join(_cell(case.get(key)) for key in columns)} |" for case in cases]
            lines.append("\n".join(rows))
        sections.append("\n\n".join(lines))
    return "\n\n".join(sections)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
