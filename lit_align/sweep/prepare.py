"""Caches that the cells of a sweep share: tokenized pairs, and log-probabilities of the reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_align.cli import run as cli
from lit_align.cli.configuration import read_settings, read_task
from lit_align.cli.early_checks import build_objective
from lit_align.comparison.runs import flatten
from lit_align.objectives.base import Needs

_REFERENCE = ("--model.reference", "Precomputed")
_VARIED_FREELY = ("model.objective", "model.optimizer", "model.schedule", "run")
"""Settings on which neither the data nor the reference depend, unless the objective asks for prompted pairs."""


class CachesFilledError(Exception):
    """Ends a run that was only started to fill caches, before its first step."""


class StopBeforeTraining(Callback):
    """Ends a run when everything before its first step is done."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise CachesFilledError


class PreparingCli(cli.Cli):
    """Command line of a run that ends before its first step."""

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, StopBeforeTraining())
        return trainer


def shared_options(arguments: Sequence[str], folder: Path, share_reference: bool) -> list[str]:
    """Return the options by which a run uses the caches of a sweep, where it has not chosen its own."""
    settings = flatten({setting.key: setting.value for setting in read_settings(["fit", *arguments])})
    options: list[str] = []
    if settings.get("data.cache", "auto") == "auto":
        options += ["--data.cache", str(folder / "data")]
    chosen = any(key.startswith("model.reference") and value is not None for key, value in settings.items())
    if share_reference and not chosen and read_task(["fit", *arguments]) == "preference":
        objective = build_objective(["fit", *arguments])
        if objective is not None and objective.needs.reference:
            options += [*_REFERENCE, "--model.reference.cache", str(folder / "reference")]
    return options


def preparation_group(arguments: Sequence[str]) -> str:
    """Return a key that is the same for runs with the same data and log-probabilities of the reference."""
    settings: dict[str, Any] = {}
    for setting in read_settings(["fit", *arguments]):
        settings |= flatten({setting.key: setting.value})
    needs = getattr(build_objective(["fit", *arguments]), "needs", None)
    if "model.reference" not in settings:
        settings.pop("seed_everything", None)
    shared = {key: value for key, value in settings.items() if not key.startswith(_VARIED_FREELY)}
    pairs = [needs.prompted, needs.mismatched] if isinstance(needs, Needs) else None  # not those of responses
    return json.dumps([shared, pairs], sort_keys=True, default=str)


def fill_caches(arguments: Sequence[str]) -> None:
    """Prepare the data of a run, and compute the log-probabilities of a reference that keeps them."""
    with cli.exit_codes():
        if any(word == "Precomputed" for word in arguments):
            try:
                cli.run(["fit", *arguments, "--samples.count", "0"], PreparingCli)
            except CachesFilledError:
                return
        else:
            cli.run(["fit", *arguments], partial(cli.Cli, action=_prepare_data))


def _prepare_data(module: object, data: Any) -> None:
    data.setup("fit")
