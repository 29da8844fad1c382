"""Settings that are refused before anything is imported for a run, and what the command line allows."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_align.errors import check_bitsandbytes, check_trainable
from lit_align.locate import adapter_base, refuse_second_adapter

ALLOWED_IMPORTS = ("lit_align", "lightning.pytorch", "torch.optim")
"""Packages whose classes a configuration may name."""
DEBUG = "LIT_ALIGN_DEBUG"
"""Environment variable; if it is set, errors come with their traceback."""
LOGGERS = {"csv": "lightning", "mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}
"""Short names of loggers, and the package that each needs."""
RENAMED_KEYS: dict[str, str] = {}
"""Former dotted key → its name now; an error names the new one."""


def check_settings(config: Namespace, command: str) -> None:
    """Raise for settings that cannot be meant, or would be ignored.

    Raises:
        ValueError: names the key.
    """
    trainer = config.trainer
    policy = str(config.model.policy)
    refuse_second_adapter(policy, config.model.lora)
    adapter = adapter_base(policy) or config.model.lora
    check_trainable("model.loading", config.get("model.loading.quantization"), adapter)
    check_trainable("model.value.loading", config.get("model.value.loading.quantization"), None)
    if str(trainer.precision) in ("16", "16-mixed", "16-true"):  # overflows, and without a GPU becomes bfloat16
        raise ValueError(f"trainer.precision {trainer.precision}: expected bf16-mixed, or 32-true")
    if config.task == "online" and trainer.gradient_clip_val:
        raise ValueError("trainer.gradient_clip_val has no place in an on-policy run; set model.gradient_clip")
    if config.task == "online" and trainer.accumulate_grad_batches != 1:
        raise ValueError("trainer.accumulate_grad_batches has no place in an on-policy run; set model.micro_batch")
    for name in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
        _check_logger(name)
    if command == "fit":
        _check_fit_settings(config)


def check_packages(settings: Any, key: str = "model") -> None:
    """Raise if a model, wherever it stands in the configuration, is to be quantized and the package is missing.

    Args:
        settings: what stands at a key.
        key: dotted.

    Raises:
        ValueError: names the key, and the command that installs the package.
    """
    for name, value in vars(settings).items() if isinstance(settings, Namespace) else ():
        if name == "quantization" and value is not None:
            check_bitsandbytes(f"{key}.{name}", value)
        check_packages(value, f"{key}.{name}")


def _check_logger(name: object) -> None:
    if not isinstance(name, str) or "." in name or name.endswith("Logger"):
        return
    if name not in LOGGERS:
        raise ValueError(
            f"trainer.logger names {name!r}; expected {', '.join(LOGGERS)}, a list of these, the class of a logger, "
            "or false for none"
        )
    if find_spec(LOGGERS[name]) is None:
        raise ValueError(f"trainer.logger {name} needs a package that is not installed: pip install {LOGGERS[name]}")


def _check_fit_settings(config: Namespace) -> None:
    trainer = config.trainer
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise ValueError("trainer.max_epochs and trainer.max_steps are both -1: the schedule needs an end; set one")
    for key in ("max_steps", "max_epochs", "limit_train_batches"):
        if trainer[key] == 0:
            raise ValueError(f"trainer.{key} is 0: nothing would be trained")
    # the run would move the model aside, or overwrite it
    policy = str(config.model.policy)
    for name, what in ((policy, "model.policy"), (adapter_base(policy), "the base model of model.policy,")):
        if name is not None and Path(name).resolve().is_relative_to(Path(config.run).resolve()):
            raise ValueError(f"{what} {name} lies in the run's own folder; give the run another (run)")
