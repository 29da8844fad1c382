"""What a user may have meant by an unknown key or name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import import_module

from lit_align.cli.keys import KeyTable, bases_of, choices_of, default_class, made_by, options_of
from lit_align.cli.signatures import Definition, Parameter, find_definition

_PREFERENCE, _ONLINE = ("lit_align.objectives.base", "Objective"), ("lit_align.online.objective", "OnlineObjective")
OBJECTIVES = {"preference": (_PREFERENCE,), "online": (_ONLINE, _PREFERENCE)}
"""Task to the base classes of its objectives."""
_UNKNOWN_NAME = re.compile(
    r"(?:dot import path string: '?|Import path (?=\S+ does not correspond)|Unable to load config [\"'])"
    r"(?P<name>[\w.]+)"
)
NAMES_ELSEWHERE = {
    "sigmoid": "dpo",
    "sigmoid_norm": "averaged_dpo",
    "hinge": "rso",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust_dpo",
    "bco_pair": "bco_unshifted",
    "sppo_hard": "sppo",
    "sft": "SFT",
}
"""Names of losses in TRL to what is the same here; docs/guides/from_trl.md explains each."""
KEYS_ELSEWHERE = {
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "num_train_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_grad_norm": "trainer.gradient_clip_val",
    "per_device_train_batch_size": "data.batch_size",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "warmup_ratio": "model.schedule.warmup",
    "loss_type": "model.objective",
    "output_dir": "run",
    "seed": "seed_everything",
    "model_name_or_path": "model.policy",
    "ref_model": "model.reference",
    "eval_steps": "trainer.val_check_interval",
    "logging_steps": "trainer.log_every_n_steps",
    "save_steps": "checkpoints.every_n_steps",
    "bf16": "trainer.precision",
    "r": "model.lora.rank",
}
"""Last part of a key in other libraries to the key that it is here."""


def suggest_key(key: str, keys: KeyTable, chosen: Mapping[str, Definition | None]) -> str:
    """Return what to write instead of an unknown key, as the end of a sentence; empty if nothing is like it."""
    section, _, rest = key.partition(".")
    last = key.rpartition(".")[2]
    inner = [leaf for leaf in keys.leaves if rest and leaf.startswith(f"{section}.") and leaf.endswith(f".{last}")]
    within = {name: leaf for name, leaf in keys.leaves.items() if rest and name.startswith(f"{section}.")}
    own = [f"{name}.{last}" for name, leaf in within.items() if _has(chosen.get(name) or default_class(leaf), last)]
    elsewhere = [KEYS_ELSEWHERE[last]] if last in KEYS_ELSEWHERE else []
    mistyped = difflib.get_close_matches(key, keys.leaves, 3, 0.85)
    others = [] if mistyped else _others(last, within, chosen)
    close = difflib.get_close_matches(key, keys.leaves, 3, 0.7)
    return did_you_mean(next(filter(None, (inner, own, elsewhere, mistyped, others, close)), []))


def _has(choice: Definition | None, option: str) -> bool:
    return choice is not None and option in (options_of(choice) or {})


def _others(option: str, leaves: Mapping[str, Parameter], chosen: Mapping[str, Definition | None]) -> list[str]:
    """Return the first key where another class than the one that stands there has an option, with that class."""
    for key, parameter in leaves.items():
        current = chosen.get(key)
        choices = [choice for base in bases_of(parameter) for choice in choices_of(base).values()]
        nearest_first = [made_by(current), *choices] if current is not None else choices
        owner = next((choice.name for choice in nearest_first if _has(choice, option)), None)
        if owner is not None:
            return [f"{key}.{option} (of {owner})"]
    return []


def suggest_name(key: str, name: str, parameter: Parameter, task: str) -> str:
    """Return what to write instead of an unknown class or preset, as the end of a sentence."""
    known = [choice for base in bases_of(parameter) for choice in choices_of(base)]
    if key == "model.objective" and (other := _other_task(name, task)):
        return f", an objective of task {other}{_add_task(other, task)}"
    if name in NAMES_ELSEWHERE and NAMES_ELSEWHERE[name] in known:
        return f"; it is called {NAMES_ELSEWHERE[name]} here"
    close = near(name, known)
    if close and len(known) > 8:
        return did_you_mean(close)
    return f"; expected {' or '.join(known)}" if len(known) <= 8 else "; expected the name of a class that is known"


def suggest_objective(message: str, short: str, given_task: str | None) -> str:
    """Add to a message of the parser what to write instead of an unknown objective, or part of one.

    Args:
        message: of the parser, whole.
        short: what is shown of it.
        given_task: of the command line; None if the command has no tasks, and takes objectives of preferences.
    """
    task = given_task or "preference"
    unknown, key = _UNKNOWN_NAME.search(message), short.split(" ")[0].strip("-:").removesuffix(".help")
    if unknown is None or "objective" not in key:
        return short
    name = unknown["name"].rpartition(".")[2]
    is_objective = key.endswith("objective")
    if is_objective and (other := _other_task(name, task)):
        advice = _add_task(other, task) if given_task else "; leave the key out, as the data do not depend on it"
        return f"{key} is {name!r}, an objective of task {other}{advice}"
    bases = OBJECTIVES.get(task, OBJECTIVES["preference"])
    parts = [part for module, _ in bases for part in import_module(module.rpartition(".")[0]).__all__]
    known = objectives_of(task) if is_objective and task in OBJECTIVES else dict.fromkeys(parts)
    return f"{short}{did_you_mean(near(name, [candidate for candidate in known if candidate != name]))}"


def objectives_of(task: str) -> dict[str, Definition]:
    """Return the objectives of a task, presets and classes, by name; empty for a task with a fixed objective."""
    bases = [find_definition(*base) for base in OBJECTIVES.get(task, ())]
    return {name: choice for base in bases if base is not None for name, choice in choices_of(base).items()}


def _other_task(name: str, task: str) -> str | None:
    """Return which other task has an objective of this name; None if none has."""
    return next((other for other in OBJECTIVES if other != task and name in objectives_of(other)), None)


def _add_task(other: str, task: str) -> str:
    return f", and the task is {task}; add --task {other}"


def near(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names that are spelt like a name."""
    return difflib.get_close_matches(name, list(known), 3, 0.6)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the end of a sentence that suggests some names; empty without names."""
    listed = " or ".join(names)
    return f"; did you mean {listed}?" if listed else ""
