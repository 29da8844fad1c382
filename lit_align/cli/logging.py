"""What libraries say about themselves, kept from the user."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

import transformers

NOT_ABOUT_THE_RUN = (
    "does not have many workers",
    "sync_dist=True",
    "Checkpoint directory",
    "Couldn't infer the batch indices",
    "across ranks is zero",
    "isinstance(treespec",
    "_checkpointing` is deprecated",
    "method of metric MatchingDivergence was called before",
)


def quiet() -> None:
    """Silence what libraries say about themselves rather than about the user's run."""
    for note in NOT_ABOUT_THE_RUN:
        warnings.filterwarnings("ignore", message=f".*{re.escape(note)}.*")
    said = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    said.addFilter(lambda record: not re.search("litlogger|litmodels|TPU available", record.getMessage()))
    logs: Any = transformers.utils.logging
    logs.disable_progress_bar()
