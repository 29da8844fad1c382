"""Private parts of PyTorch, tried with version 2.13.0; ``tests/compat`` fails when they change."""

from __future__ import annotations

from typing import Any


def event_file_writer(summary_writer: Any) -> Any:
    """Return the file writer of a TensorBoard SummaryWriter, which accepts any event."""
    return summary_writer._get_file_writer()
