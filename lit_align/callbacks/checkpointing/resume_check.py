"""Compares the settings of a run with those stored in the checkpoint that it resumes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_align import testbed
from lit_align.files import at_home
from lit_align.locate import is_gguf
from lit_align.modules.step_totals import BATCHES_IN_STEP

NO_EFFECT_ON_RESULT = {
    "model.forward_pass.compile",
    "model.forward_pass.layout",
    "model.forward_pass.row_tokens",
    "model.forward_pass.tile_mb",
    "model.forward_pass.tokens_at_once",
    "model.loading.gradient_checkpointing",
    "data.cache",
    "data.eval_batch_size",
    "data.num_workers",
    "data.on_template_loss",
    "data.predict",
    "data.template_date",
    "data.test",
    "data.tokenize_workers",
    "data.validation",
    "model.reference.init_args.cache",
    "model.reference.init_args.checked_rows",
}

ADDED_SETTINGS = {
    "data.quality_prompt_position": "start",
    "data.score_end": "turn",
    "model.decay_norms_and_biases": False,
}
"""Settings that earlier checkpoints lack, with values that change nothing for most data; its digest tells others."""

REQUIRED_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
"""Parts of a checkpoint; a run that resumed without one of them would partly start anew, without notice."""

TRAINER_KEYS = {
    f"trainer.{name}"
    for name in (
        *("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "limit_train_batches"),
        *("max_epochs", "max_steps", "overfit_batches", "precision"),
    )
}
"""Settings of the trainer that affect the result. A checkpoint without them, an older one, is not compared by them."""
LENGTH_KEYS = ("trainer.max_epochs", "trainer.max_steps")
"""Settings that may change, since runs are made longer; but the schedule of the learning rate changes with them."""
STATEFUL = {"alpha", "betas", "etas", "lr_decay", "rho"}
"""Settings that only optimizers have that keep numbers for each weight; ``momentum`` above 0 is another."""

FORMER_STATE_KEY = "SameRun"
"""Key of the settings in checkpoints that were written before the callback had its present name."""
WEIGHT_KEYS = ("model.policy", "model.lora")
OPTIMIZER_KEYS = ("model.optimizer", "model.value.learning_rate")
ADVICE = "To start anew from its weights, make a model of it (python -m lit_align consolidate) and set model.policy"


class ResumeCheck(Callback):
    """Stores the settings that affect the result in every checkpoint, and compares them before a checkpoint is used.

    A setting that names a model's folder is stored with a fingerprint of its files, so that a changed reference model
    is noticed.

    Args:
        settings: the run's configuration as plain data; ``model``, ``data`` and some of ``trainer`` are compared,
            except for settings that do not affect the result.
        on_change: refuse other settings, or warn and use them; those of the optimizer are restored with its state, so
            a change is always refused.
        resumes: whether training continues from the checkpoint; otherwise it is only evaluated, and only the settings
            of policy and adapter must be the same.
    """

    def __init__(
        self, settings: Mapping[str, Any], on_change: Literal["error", "warn"] = "error", resumes: bool = True
    ) -> None:
        flat = dict(flatten_settings({key: settings.get(key, {}) for key in ("model", "data", "trainer")}))
        ignored = {key for key in flat if key.startswith("trainer") and key not in TRAINER_KEYS}
        self.settings = {key: value for key, value in flat.items() if key not in NO_EFFECT_ON_RESULT | ignored}
        self.settings.update(_fingerprints(flat))
        self.on_change = on_change
        self.resumes = resumes

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.settings

    def compare(self, checkpoint: Mapping[str, Any]) -> None:
        """Raise or warn if the settings stored in a checkpoint differ; one without settings is accepted.

        Raises:
            ValueError: settings differ (names each with both values), or a part of the checkpoint is missing.
        """
        self._check_parts(checkpoint)
        stored = checkpoint.get("callbacks", {})
        saved = stored.get(self.state_key, stored.get(FORMER_STATE_KEY))
        if saved is None:
            return
        saved = {key: value for key, value in ADDED_SETTINGS.items() if key in self.settings} | saved
        different = {
            key: f"  {key}: was {saved.get(key)!r}, is {self.settings.get(key)!r}"
            for key in sorted(saved.keys() | self.settings.keys())
            if saved.get(key) != self.settings.get(key)
            and (self.resumes or key.startswith(WEIGHT_KEYS))
            and (key in saved or key not in TRAINER_KEYS)
        }
        lengths = [line.strip() for key, line in different.items() if key in LENGTH_KEYS]
        if lengths:
            rank_zero_warn(
                f"the checkpoint is of a run of another length ({'; '.join(lengths)}): the learning rate goes on as "
                "the schedule of the new length has it at this step, which is not where it was"
            )
        changes = [line for key, line in different.items() if key not in LENGTH_KEYS]
        if not changes:
            return
        message = "\n".join(["the checkpoint is of a run with other settings:", *changes])
        if self.resumes and any(change.strip().startswith(OPTIMIZER_KEYS) for change in changes):
            raise ValueError(
                f"{message}\nThe optimizer's settings are part of its state: take the old ones. {ADVICE}."
            )
        if self.on_change == "error":
            raise ValueError(f"{message}\nTake the old ones, or say --on_changed_settings warn to go on with the new.")
        rank_zero_warn(message)

    def _check_parts(self, checkpoint: Mapping[str, Any]) -> None:
        batches = checkpoint.get(BATCHES_IN_STEP, 0)
        if self.resumes and batches:
            raise ValueError(
                f"the checkpoint was written inside an accumulation window, and the gradients of its {batches} "
                f"batches are not in it: a run cannot go on from it. {ADVICE}"
            )
        missing = [part for part in REQUIRED_PARTS if part not in checkpoint]
        if self.resumes and missing:
            raise ValueError(f"the checkpoint has no {', '.join(missing)}: a run cannot go on from it. {ADVICE}")
        if self.resumes and is_empty(checkpoint["optimizer_states"], checkpoint.get("global_step", 0)):
            raise ValueError(
                "the checkpoint has an empty optimizer state: its moments would start anew, and a run cannot go on "
                f"from it. {ADVICE}"
            )

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without the position in the data: training would begin with the first rows again.

        Raises:
            ValueError: the checkpoint does not have it.
        """
        host: Any = trainer  # Lightning sets the attribute without declaring it
        data = type(host.datamodule).__qualname__
        if trainer.state.fn == "fit" and host.datamodule is not None and data not in checkpoint:
            raise ValueError(f"the checkpoint has no position in the data ({data}): a run cannot go on from it")


def is_empty(states: Sequence[Mapping[str, Any]], step: int) -> bool:
    """Return whether no optimizer state is stored, or none of the weights in one that must have it.

    >>> adam = {"state": {}, "param_groups": [{"betas": (0.9, 0.99)}]}
    >>> is_empty([adam], 3), is_empty([adam], 0), is_empty([{"state": {}, "param_groups": [{"momentum": 0}]}], 3)
    (True, False, False)
    """
    if not all(state.get("param_groups") for state in states) or not states:
        return True
    groups = [group for state in states if not state.get("state") for group in state["param_groups"]]
    return step > 0 and any(STATEFUL & group.keys() or group.get("momentum") for group in groups)


def _fingerprints(flat: Mapping[str, Any]) -> dict[str, str]:
    fingerprints = {
        f"{key} (files)": model_fingerprint(value)
        for key, value in flat.items()
        if key.startswith("model.") and isinstance(value, str)
    }
    return {key: value for key, value in fingerprints.items() if value is not None}


def flatten_settings(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and their values.

    >>> dict(flatten_settings({"model": {"objective": {"beta": 0.1}, "lora": None}}))
    {'model.objective.beta': 0.1, 'model.lora': None}
    """
    if isinstance(settings, Mapping) and settings:
        for key, value in settings.items():
            yield from flatten_settings(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, settings


MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json")
_MAX_BYTES_READ_WHOLE = 64 * 2**20
_BLOCKS, _BLOCK_BYTES = 256, 2**16


def model_fingerprint(name: str) -> str | None:
    """Return a SHA-256 over configuration, weights and tokenizer of a model's folder; None for any other name.

    Of a file above 64 MiB it reads the size, both ends (of safetensors that is every tensor's name, dtype and shape),
    and 256 blocks between them: training changes every tensor, so 15 GB need not be read before each start.

    Args:
        name: folder of a model, or ``testbed:policy``.

    >>> model_fingerprint("testbed:policy") == model_fingerprint("testbed:policy")
    True
    >>> model_fingerprint("owner/name") is None
    True
    """
    folder = testbed.resolve(name) or at_home(name)
    if folder.is_file() and is_gguf(name):
        return _digest_sampled(folder).hex()
    if not (folder / "config.json").is_file():
        return None
    sha256 = hashlib.sha256()
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        sha256.update(f"{path.name} {path.stat().st_size}\n".encode())
        sha256.update(_digest_sampled(path))
    return sha256.hexdigest()


def _digest_sampled(path: Path) -> bytes:
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _MAX_BYTES_READ_WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        for block in range(_BLOCKS):
            file.seek((size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
            sha256.update(file.read(_BLOCK_BYTES))
    return sha256.digest()
