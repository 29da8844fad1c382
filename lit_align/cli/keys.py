"""The keys of a configuration, derived from signatures that are read without importing anything."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from lit_align.cli.annotations import Kind, kinds
from lit_align.cli.signatures import (
    ANY_NAME,
    Definition,
    Parameter,
    find_definition,
    is_abstract,
    is_plain_record,
    is_subclass,
    modules_of,
    names_in,
    parameters,
    source_of_module,
    subclasses,
)

MODULES = {
    "preference": ("lit_align.modules.preference", "LitPreference"),
    "reward": ("lit_align.modules.reward", "LitReward"),
    "online": ("lit_align.modules.online.module", "LitOnline"),
}
"""The values of ``task``, and the module that each trains."""
SECTIONS = {
    "data": ("lit_align.data.datamodule", "PreferenceData"),
    "samples": ("lit_align.callbacks.samples", "Samples"),
    "evaluation": ("lit_align.callbacks.evaluation", "TrainingEvaluation"),
    "checkpoints": ("lit_align.callbacks.checkpointing.checkpoints", "Checkpoints"),
    "export": ("lit_align.callbacks.export", "Export"),
    "hub": ("lit_align.callbacks.hub", "HubPush"),
    "trainer": ("lightning.pytorch.trainer.trainer", "Trainer"),
}
"""Sections of a configuration beside ``model``, and the class whose arguments are their keys."""
LINKED = ("data.prompted", "data.mismatched")
"""Arguments that are set by the objective and so are no keys."""
TRAINER_DEFAULTS: dict[str, int] = {
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}
"""Defaults of the trainer that are not Lightning's."""


class RunKey(NamedTuple):
    """Type, default and help of a key of the run itself."""

    type: str
    default: str | int | None
    help: str


RUN_KEYS = {
    "task": RunKey(
        'Literal["preference", "reward", "online"]',
        "preference",
        "preference: align a policy directly; reward: train a reward model; online: RLHF on a policy's own responses. "
        "Determines the keys under `model`.",
    ),
    "run": RunKey("str", "runs/default", "Folder for everything the run writes."),
    "extend": RunKey(
        "str",
        None,
        "Folders, files or modules with your own parts, comma separated; their code is imported. Counts on the "
        "command line only.",
    ),
    "on_changed_settings": RunKey(
        'Literal["error", "warn"]', "error", "When a run is resumed with other settings of model or data."
    ),
    "seed_everything": RunKey(
        "int | bool", 0, "Seed of everything that draws random numbers; true takes a random one."
    ),
}
"""The keys of the run itself."""
COMMAND_KEYS = {
    "ckpt_path": "Checkpoint to go on from, or to evaluate: a path, or last for the newest in the run's folder.",
    "weights_only": "Has no effect: of a checkpoint nothing but tensors and plain data is ever read.",
}
"""What the trainer's own arguments mean here, where that is not what Lightning says."""
TRAINER_HELP = {
    "logger": "csv, mlflow, tensorboard or wandb, the class of a logger, or a list of these; false for none. "
    "Without it tensorboard. metrics.jsonl is written beside any of them.",
}
"""The same for arguments of the trainer itself."""
_GIVEN = ("model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule")
_OPTIMIZER = "Callable[[Iterable], Optimizer]"


@dataclass(frozen=True)
class KeyTable:
    """The keys of a command for one task.

    Args:
        leaves: dotted key to the parameter that it sets.
        groups: dotted keys that hold others, such as ``model.loading``.
    """

    leaves: dict[str, Parameter]
    groups: frozenset[str]

    def known(self, key: str) -> bool:
        """Return whether a dotted key is one of the keys, or holds some."""
        return key in self.leaves or key in self.groups


@cache
def keys_of(command: str, task: str) -> KeyTable:
    """Return the keys of a command, those of lit_align first."""
    leaves = {name: _declared(name, *declaration) for name, declaration in RUN_KEYS.items()}
    leaves |= {parameter.name: parameter for parameter in _of_command(command)}
    groups: set[str] = set()
    for section, (module, name) in {"model": MODULES[task], **SECTIONS}.items():
        definition = find_definition(module, name)
        assert definition is not None, f"{module}.{name} is gone"
        leaves |= dict(_flatten(section, definition, groups))
    for key, value in TRAINER_DEFAULTS.items():
        leaves[f"trainer.{key}"] = replace(leaves[f"trainer.{key}"], default=ast.Constant(value))
    for key, text in TRAINER_HELP.items():
        leaves[f"trainer.{key}"] = replace(leaves[f"trainer.{key}"], help=text)
    return KeyTable({key: leaf for key, leaf in leaves.items() if key not in LINKED}, frozenset(groups))


def _declared(name: str, annotation: str, default: str | int | None, text: str) -> Parameter:
    return Parameter(name, ast.parse(annotation, mode="eval").body, ast.Constant(default), __name__, text)


def _of_command(command: str) -> Iterator[Parameter]:
    """Yield the arguments of the trainer's method that runs a command."""
    trainer = find_definition(*SECTIONS["trainer"])
    methods = trainer.node.body if trainer is not None and isinstance(trainer.node, ast.ClassDef) else []
    for method in methods:
        if isinstance(method, ast.FunctionDef) and method.name == command:
            for parameter in parameters(Definition(SECTIONS["trainer"][0], method)):
                if parameter.name not in _GIVEN:
                    yield replace(parameter, help=COMMAND_KEYS.get(parameter.name, parameter.help))


def _flatten(
    prefix: str, definition: Definition, groups: set[str], outer: ast.expr | None = None
) -> Iterator[tuple[str, Parameter]]:
    """Yield the keys of a class, with the defaults that ``outer``, the default of the parameter it is for, gives."""
    groups.add(prefix)
    given = {word.arg: word.value for word in outer.keywords} if isinstance(outer, ast.Call) else {}
    for own in parameters(definition):
        parameter = replace(own, default=given.get(own.name, own.default))
        key = f"{prefix}.{parameter.name}"
        types = kinds(parameter.module, parameter.annotation)
        record = types[0].definition if len(types) == 1 else None
        if record is not None and (is_plain_record(record) or not _variants(record)):
            yield from _flatten(key, record, groups, parameter.default)
        else:
            yield key, parameter


def _variants(base: Definition) -> dict[str, Definition]:
    """Return the classes that may stand for a base class, where there are several or it is abstract."""
    known = subclasses(base, ("lit_align",)) if base.module.startswith("lit_align") else {base.name: base}
    return {base.name: base, **known} if known or is_abstract(base) else {}


def bases_of(parameter: Parameter) -> list[Definition]:
    """Return the classes of which a parameter may be an instance, or that it may build."""
    types = kinds(parameter.module, parameter.annotation)
    return [base for kind in types if (base := _base_of(kind)) is not None]


def _base_of(kind: Kind) -> Definition | None:
    return find_definition("torch.optim", "Optimizer") if kind.name == _OPTIMIZER else kind.definition


@cache
def choices_of(base: Definition) -> dict[str, Definition]:
    """Return the classes that may stand for a base class, and the presets that return one, by name.

    Args:
        base: of lit_align or of torch.optim; others have none that is known.
    """
    if base.module.startswith("torch.optim"):
        known = {name: find_definition("torch.optim", name) for name in names_in("torch.optim")[0]}
        parts = {name: part for name, part in known.items() if part is not None and part != base}
        return {name: part for name, part in parts.items() if is_subclass(part, base)}
    if not base.module.startswith("lit_align"):
        return {}
    own = {} if is_abstract(base) else {base.name: base}
    return {**_presets(base), **own, **subclasses(base, ("lit_align",))}


def _presets(base: Definition) -> dict[str, Definition]:
    """Return the functions in the presets of a base class's package that return one of its subclasses."""
    package = f"{'.'.join(base.module.split('.')[:2])}.presets"
    presets: dict[str, Definition] = {}
    for module in modules_of(package) if source_of_module(package) is not None else ():
        for name, node in names_in(module)[0].items():
            if isinstance(node, ast.FunctionDef) and not name.startswith("_"):
                made = kinds(module, node.returns)[0].definition
                if made is not None and is_subclass(made, base):
                    presets[name] = Definition(module, node)
    return dict(sorted(presets.items()))


def default_class(parameter: Parameter) -> Definition | None:
    """Return the class of a parameter's default, or the only class that it may be; None if that is not known."""
    node = parameter.default.body if isinstance(parameter.default, ast.Lambda) else parameter.default
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return find_definition(parameter.module, node.func.id)
    choices = [choice for base in bases_of(parameter) for choice in choices_of(base).values()]
    return choices[0] if len(choices) == 1 else None


def made_by(choice: Definition) -> Definition:
    """Return the class that a preset returns; of a class, itself."""
    returns = choice.node.returns if isinstance(choice.node, ast.FunctionDef) else None
    made = kinds(choice.module, returns)[0].definition
    return made or choice


def options_of(choice: Definition) -> dict[str, Parameter] | None:
    """Return the options of a class or preset by name; None if it takes any."""
    options = {parameter.name: parameter for parameter in parameters(choice)}
    if choice.module.startswith("torch.optim"):
        options.pop("params", None)
    return None if ANY_NAME in options else options
