"""A position in the training data is worth something in the same data alone; its identity says which that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MEANING = {
    "fingerprint": "the fingerprint of the tokenized pairs",
    "template": "the hash of the chat template",
    "global_batch": "the number of pairs per batch of all processes",
    "step": "the number of pairs per optimizer step",
    "tokens": "data.tokens_per_batch",
    "processes": "the number of processes",
    "accumulate": "trainer.accumulate_grad_batches",
    "seed": "data.seed",
}


def check_identity(saved: Mapping[str, Any], found: Mapping[str, Any], inside_epoch: bool) -> None:
    """Raise unless a saved position is one in the data that is there.

    Other pairs are never the same data; other batches of the same pairs matter in the middle of an epoch only. The
    chat template is named where it may be why the pairs are others.

    Args:
        saved: identity of the data that the position was saved in.
        found: identity of the data that is there.
        inside_epoch: the position is in the middle of an epoch.

    Raises:
        ValueError: it is not; names what differs, with both values.
    """
    changed = [key for key in _MEANING if saved.get(key) != found.get(key)]
    if "fingerprint" not in changed:
        changed = [key for key in changed if key != "template"] if inside_epoch else []
    if changed:
        each = "; ".join(f"{_MEANING[key]} was {saved.get(key)} and is {found.get(key)}" for key in changed)
        raise ValueError(
            f"the checkpoint's training data is not this one: {each}. "
            "Resume with the data and settings of the first run, or start anew from its weights"
        )
