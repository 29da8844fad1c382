"""A checkpoint is read by the run that it was saved by."""

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

OF_THE_WEIGHTS = ("model.policy", "model.lora")


class SameRun(Callback):
    """Keeps the settings that enter the result in every checkpoint, and compares them before one is used.

    Args:
        settings: the run's configuration as plain data; what stands under ``model`` and ``data`` counts, but for what
            does not enter the result.
        on_change: refuse other settings, or warn and go on with them.
        resumes: the run goes on from the checkpoint; otherwise it only evaluates, and what the weights belong to must
            be the same: policy and adapter.
    """

    def __init__(
        self, settings: Mapping[str, Any], on_change: Literal["error", "warn"] = "error", resumes: bool = True
    ) -> None:
        flat = dict(flattened({key: settings[key] for key in ("model", "data")}))
        self.settings = {key: value for key, value in flat.items() if key not in WITHOUT_EFFECT}
        self.on_change = on_change
        self.resumes = resumes

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return self.settings

    def compare(self, checkpoint: Mapping[str, Any]) -> None:
        """Compare with the settings in a checkpoint, if it has any.

        Raises:
            ValueError: settings differ; names each with both values.
        """
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is None:
            return
        changes = [
            f"  {key}: was {saved.get(key)!r}, is {self.settings.get(key)!r}"
            for key in sorted(saved.keys() | self.settings.keys())
            if saved.get(key) != self.settings.get(key) and (self.resumes or key.startswith(OF_THE_WEIGHTS))
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
