"""A resumed run is the run that was saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

WITHOUT_EFFECT = {
    "model.loading.gradient_checkpointing",
    "data.cache",
    "data.eval_batch_size",
    "data.num_workers",
    "data.predict",
    "data.test",
    "data.tokenize_workers",
    "data.validation",
}


class SameRun(Callback):
    """Keeps the settings that enter the result in every checkpoint, and compares them when a run is resumed.

    Args:
        settings: the run's configuration as plain data; what stands under ``model`` and ``data`` counts, but for what
            does not enter the result.
        on_change: refuse other settings, or warn and go on with them.
    """

    def __init__(self, settings: Mapping[str, Any], on_change: Literal["error", "warn"] = "error") -> None:
        flat = dict(flattened({key: settings[key] for key in ("model", "data")}))
        self.settings = {key: value for key, value in flat.items() if key not in WITHOUT_EFFECT}
        self.on_change = on_change

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return self.settings

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare.

        Raises:
            ValueError: settings differ; names each with both values.
        """
        changes = [
            f"  {key}: was {state_dict.get(key)!r}, is {self.settings.get(key)!r}"
            for key in sorted(state_dict.keys() | self.settings.keys())
            if state_dict.get(key) != self.settings.get(key)
        ]
        if not changes:
            return
        message = "\n".join(["the checkpoint is of a run with other settings:", *changes])
        if self.on_change == "error":
            raise ValueError(f"{message}\nTake the old ones, or say --on_changed_settings warn to go on with the new.")
        rank_zero_warn(message)


def flattened(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values.

    >>> dict(flattened({"model": {"objective": {"beta": 0.1}, "lora": None}}))
    {'model.objective.beta': 0.1, 'model.lora': None}
    """
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings
