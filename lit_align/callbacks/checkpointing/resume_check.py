"""A checkpoint is read by the run that it was saved by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_align import testbed
from lit_align.files import at_home

WITHOUT_EFFECT = {
    "model.forward_pass.compile",
    "model.forward_pass.layout",
    "model.forward_pass.row_tokens",
    "model.forward_pass.tile_mb",
    "model.forward_pass.tokens_at_once",
    "model.loading.gradient_checkpointing",
    "data.cache",
    "data.eval_batch_size",
    "data.num_workers",
    "data.predict",
    "data.test",
    "data.tokenize_workers",
    "data.validation",
    "model.reference.init_args.cache",
    "model.reference.init_args.checked_rows",
}

NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
"""What a run goes on from; without one of them it would start anew in part, and nobody would see it."""

OF_THE_WEIGHTS = ("model.policy", "model.lora")
OF_THE_OPTIMIZER = ("model.optimizer", "model.value.learning_rate")
ANEW = "To start anew from its weights, make a model of it (python -m lit_align consolidate) and set model.policy"


class ResumeCheck(Callback):
    """Keeps the settings that enter the result in every checkpoint, and compares them before one is used.

    Beside each setting that names a model's folder stands the fingerprint of its files: the reference must not change
    under the policy.

    Args:
        settings: the run's configuration as plain data; what stands under ``model`` and ``data`` counts, but for what
            does not enter the result.
        on_change: refuse other settings, or warn and go on with them; those of the optimizer come back with its state,
            so they are refused in any case.
        resumes: the run goes on from the checkpoint; otherwise it only evaluates, and what the weights belong to must
            be the same: policy and adapter.
    """

    def __init__(
        self, settings: Mapping[str, Any], on_change: Literal["error", "warn"] = "error", resumes: bool = True
    ) -> None:
        flat = dict(flattened({key: settings[key] for key in ("model", "data")}))
        self.settings = {key: value for key, value in flat.items() if key not in WITHOUT_EFFECT}
        self.settings.update(_fingerprints(flat))
        self.on_change = on_change
        self.resumes = resumes

    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return self.settings

    def compare(self, checkpoint: Mapping[str, Any]) -> None:
        """Compare with the settings in a checkpoint, if it has any.

        Raises:
            ValueError: settings differ (names each with both values), or the checkpoint lacks what a run goes on from.
        """
        self._check_parts(checkpoint)
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
        if self.resumes and any(change.strip().startswith(OF_THE_OPTIMIZER) for change in changes):
            raise ValueError(f"{message}\nThe optimizer's settings are part of its state: take the old ones. {ANEW}.")
        if self.on_change == "error":
            raise ValueError(f"{message}\nTake the old ones, or say --on_changed_settings warn to go on with the new.")
        rank_zero_warn(message)

    def _check_parts(self, checkpoint: Mapping[str, Any]) -> None:
        missing = [part for part in NEEDED if part not in checkpoint]
        if self.resumes and missing:
            raise ValueError(f"the checkpoint has no {', '.join(missing)}: a run cannot go on from it. {ANEW}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without the position in the data, which would begin at its start again.

        Raises:
            ValueError: the checkpoint does not have it.
        """
        host: Any = trainer  # Lightning sets the attribute without declaring it
        data = type(host.datamodule).__qualname__
        if trainer.state.fn == "fit" and host.datamodule is not None and data not in checkpoint:
            raise ValueError(f"the checkpoint has no position in the data ({data}): a run cannot go on from it")


def _fingerprints(flat: Mapping[str, Any]) -> dict[str, str]:
    found = {
        f"{key} (files)": fingerprint(value)
        for key, value in flat.items()
        if key.startswith("model.") and isinstance(value, str)
    }
    return {key: value for key, value in found.items() if value is not None}


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


PARTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
_WHOLE = 64 * 2**20
_BLOCKS, _BLOCK = 256, 2**16


def fingerprint(name: str) -> str | None:
    """SHA-256 over configuration, weights and tokenizer of a model's folder; None for what is not such a folder.

    Of a file above 64 MiB it takes the size, both ends (of safetensors that is every tensor's name, dtype and shape),
    and 256 blocks between them: another training run changes every tensor, and 15 GB are not read before each start.

    Args:
        name: folder of a model, or ``testbed:policy``.

    >>> fingerprint("testbed:policy") == fingerprint("testbed:policy")
    True
    >>> fingerprint("owner/name") is None
    True
    """
    folder = testbed.resolve(name) or at_home(name)
    if not (folder / "config.json").is_file():
        return None
    whole = hashlib.sha256()
    for path in sorted({path for part in PARTS for path in folder.glob(part)}):
        whole.update(f"{path.name} {path.stat().st_size}\n".encode())
        whole.update(_content(path))
    return whole.hexdigest()


def _content(path: Path) -> bytes:
    size = path.stat().st_size
    found = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
            found.update(file.read(_BLOCK))
    return found.digest()
