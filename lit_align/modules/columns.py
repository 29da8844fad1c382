"""Columns of the data that change a loss are refused for objectives that would ignore them."""

from __future__ import annotations

from collections.abc import Mapping

from lit_align.data import Split
from lit_align.objectives.objective import Objective


def check_columns(objective: Objective, splits: Mapping[str, Split]) -> None:
    """Raise if a split has what the objective would ignore.

    Args:
        objective: what is optimised.
        splits: name → prepared split.

    Raises:
        ValueError: it has unpaired rows, margins or preference probabilities that the objective does not honour.
    """
    name = type(objective).__name__
    for split, columns in splits.items():
        if columns.unpaired and not objective.accepts_unpaired:
            raise ValueError(
                f"data.{split} is unpaired (prompt, completion, label), but {name} compares a chosen with a rejected "
                "response; expected pairs, or an objective for unpaired data"
            )
        ignored = sorted(columns.honoured - objective.honours)
        if ignored:
            leave_out = ", ".join(f"{column}: null" for column in ignored)
            raise ValueError(
                f"data.{split} has the columns {', '.join(ignored)}, which {name} would ignore; if that is "
                f"right, leave them out: data.columns: {{{leave_out}}}"
            )
