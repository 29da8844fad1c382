"""Shortens the error messages of jsonargparse; ``tests/cli`` fails when it changes their wording."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from textwrap import dedent
from typing import Any

from lit_align.errors import printable, shown

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"[^\n]*:\n+(?P<rest>.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)':\n(?P<rest>.*)", re.DOTALL)
_CALLABLE = re.compile(r"Type typing\.Callable\S*.* expects a function or a callable class: (?P<rest>.*)", re.DOTALL)
_NO_FILE = re.compile(r"- Expected a path but .*? either not accessible or invalid\n- (?P<rest>.*)", re.DOTALL)
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes\nSubtypes: .*?\nErrors:\n(?P<errors>.*)"
    r"\nGiven value type: [^\n]*\nGiven value: (?P<value>.*)",
    re.DOTALL,
)
_OPTION = re.compile(r"Option '(?P<key>[^']+)' is not accepted(?:; did you mean (?P<meant>.*)\?)?")
_ARGUMENT = re.compile(r"unrecognized arguments: --(?P<key>[\w.]+)")
_MISSING = re.compile(r"the following arguments are required: (?P<keys>.*)")
_IMPORT = re.compile(r"Expected a dot import path string: (?P<value>.*)", re.DOTALL)
_DENIED = re.compile(r"Importing '(?P<value>[^']+)' is not allowed")
_TYPE = re.compile(r"Expected an? (?P<type>.*?)(?:\. Got value: (?P<value>.*))?", re.DOTALL)
_NOTHING = "Expected a <class 'NoneType'>"
_GIVEN = re.compile(r"\. Got value: Namespace\(.*", re.DOTALL)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}


_ADVICE = (
    (
        r"trust_remote_code",
        "the model, or its tokenizer, needs code of its own from its repository, which is never run here; expected "
        "one that transformers itself knows",
    ),
    (
        r"DataLoader worker .*(killed|exited|Killed)",
        "a worker process of the data loader was ended from outside, as happens when memory is short; lower "
        "data.num_workers",
    ),
)
"""Messages of libraries whose advice does not exist here, and what is said in their place."""
_IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)\..*\n(?P<last>\S[^\n]*)\s*", re.DOTALL)


def without_foreign_advice(message: str) -> str:
    r"""Replace a message of a library that advises what does not exist here, and the traceback of a worker.

    >>> without_foreign_advice("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: row 3\n")
    'ValueError: row 3'
    """
    for pattern, words in _ADVICE:
        if re.search(pattern, message):
            return words
    in_worker = _IN_WORKER.fullmatch(message)
    return in_worker["last"] if in_worker else message


_PHASES = (
    ("sampling responses", {"sample_rollout", "generate", "sample_responses"}),
    ("the optimizer step", {"adamw", "adam", "sgd", "_init_group", "_single_tensor_adamw", "_fused_adamw"}),
    ("evaluation", {"validation_step", "test_step", "predict_step"}),
    ("the reference's forward pass", {"_reference", "_reference_log_probs"}),
    ("the backward pass", {"backward", "manual_backward", "_engine_run_backward"}),
    ("the policy's forward pass", {"training_step", "fused_loss"}),
    ("loading the models", {"configure_model", "model_to_device"}),
    ("the layout check", {"choose_layout"}),
)
"""What a run does, and the functions that do it; the first that is under way counts."""
KNOBS = (
    ("model.forward_pass.tokens_at_once: 4096", "fewer activations, the same numbers"),
    ("model.micro_batch: 1", "fewer activations, the same numbers"),
    ("model.loading.gradient_checkpointing: true", "far fewer activations, a third more time"),
    ("model.lora: LoRA, with model.loading.dtype: bfloat16", "no optimizer state of whole weights"),
)
"""Settings that need less memory, the cheapest first, and what they do; the second is that of on-policy runs."""
_GIB = 2**30


def out_of_memory(error: BaseException) -> str:
    """Word in one line that a device is out of memory: what was going on, and what the allocator says.

    Args:
        error: ``torch.OutOfMemoryError``, with its traceback.
    """
    running = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    phase = next((phase for phase, names in _PHASES if names & running), "the run")
    reason = " ".join(str(error).split()).partition(" If reserved but")[0].partition(" See documentation")[0]
    return f"out of memory in {phase}: {printable(reason.removeprefix('CUDA out of memory. '))}"


def what_helps(task: str, figures: Mapping[str, int]) -> str:
    """Word what needs less memory, and how much by the plan.

    Args:
        task: of the run.
        figures: bytes of each process, as the run is under an empty name, and with each of ``KNOBS``, of which those
            that save nothing are left out; empty where the plan knows nothing of the run.

    >>> print(what_helps("online", {"": 3 * 2**30, "model.micro_batch: 1": 2**30}))
    These help; by `python -m lit_align plan` the run needs 3.0 GiB in each process as it is:
      model.micro_batch: 1  1.0 GiB: fewer activations, the same numbers
    """
    other = "model.forward_pass.tokens_at_once" if task == "online" else "model.micro_batch"
    knobs = [(setting, effect) for setting, effect in KNOBS if not setting.startswith(other)]
    first = (
        "These help, the first ones most cheaply; `python -m lit_align plan`, with the run's options, says how much:"
    )
    smaller = {setting: size for setting, size in figures.items() if size < figures[""]}
    if smaller:
        needs = f"{figures[''] / _GIB:.1f} GiB in each process as it is"
        first = f"These help; by `python -m lit_align plan` the run needs {needs}:"
        knobs = [
            (setting, f"{smaller[setting] / _GIB:.1f} GiB: {effect}")
            for setting, effect in knobs
            if setting in smaller
        ]
    width = max((len(setting) for setting, _ in knobs), default=0)
    return "\n".join([first, *(f"  {setting:<{width}}  {effect}" for setting, effect in knobs)])


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one clean line; replaces ``warnings.showwarning``, which adds a path and a line of code."""
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def shorten(message: str) -> str:
    r"""Shorten a message of jsonargparse to one line per reason: the whole key, its value, what was expected.

    Messages that are not recognized stay as they are.

    >>> shorten(
    ...     "Parser key \"model.lora\":\n  Problem with given class_path 'lit_align.models.LoRA':\n"
    ...     "    Parser key \"rank\":\n      Expected a <class 'int'>. Got value: many"
    ... )
    "model.lora.rank is 'many'; expected a whole number"
    """
    return _shorten_level(message.strip("\n"), "", "")


def _shorten_level(text: str, key: str, class_name: str) -> str:
    """Shorten one level of a nested message, which is about a key of a class; both are empty at the top."""
    if match := _KEY.fullmatch(text):
        return _shorten_level(dedent(match["rest"]), _joined(key, match["key"]), class_name)
    if match := _CLASS.fullmatch(text):
        return _shorten_level(dedent(match["rest"]), key, match["name"].rpartition(".")[2])
    if match := _CALLABLE.fullmatch(text):
        return _shorten_level(_GIVEN.sub("", match["rest"]), key, class_name)
    if match := _NO_FILE.fullmatch(text):
        return _shorten_level(match["rest"], key, class_name)
    if match := _UNION.fullmatch(text):
        return _shorten_union(match["errors"], match["value"], key, class_name)
    return _shorten_reason(text, key, class_name)


def _shorten_reason(text: str, key: str, class_name: str) -> str:
    """Shorten the innermost level of a message."""
    if (match := _OPTION.match(text)) and (class_name or key):
        near = match["meant"] or ("lr" if f"{key}.{match['key']}".endswith("optimizer.learning_rate") else "")
        meant = f"; did you mean {near}?" if near else ""
        return f"{_joined(key, match['key'])}: {class_name or key} has no such option{meant}"
    if (match := _ARGUMENT.match(text)) and class_name:
        return f"{_joined(key, match['key'])}: {class_name} has no such option"
    if (match := _MISSING.match(text)) and class_name:
        keys = ", ".join(_joined(key, name) for name in match["keys"].split(", "))
        return f"{keys}: missing; {class_name} needs it"
    if match := _DENIED.match(text):
        return (
            f"{_before(key)}importing {shown(match['value'])} is not allowed; expected a class of lit_align, "
            "lightning.pytorch or torch.optim, or of code that the command line names by --extend"
        )
    if (match := _IMPORT.fullmatch(text)) and key:
        return f"{key} is {shown(match['value'])}; expected the name of a class that is known"
    if (match := _TYPE.fullmatch(text)) and key and match["value"] is not None:
        return f"{key} is {shown(match['value'])}; expected {_in_words(match['type'])}"
    return f"{_before(key)}{text}"


def _shorten_union(errors: str, value: str, key: str, class_name: str) -> str:
    """Shorten the errors of a value that may have several types, to those of the types that may have been meant."""
    parts = re.split(r"^  - ", errors, flags=re.MULTILINE)
    items = [_unindent(item) for item in dict.fromkeys(dedent(part).strip() for part in parts if part)]
    types = [match["type"] for item in items if (match := _TYPE.fullmatch(item)) and not _IMPORT.fullmatch(item)]
    expected = dict.fromkeys(_in_words(type_name) for type_name in types if "NoneType" not in type_name)
    reasons = [item for item in items if not _TYPE.fullmatch(item)]
    if expected and not reasons:
        return f"{_before(key, ' is ')}{shown(value)}; expected {' or '.join(expected)}"
    lines = (_shorten_level(item, key, class_name) for item in reasons or items if item != _NOTHING)
    return "\n".join(dict.fromkeys(lines))


def _unindent(item: str) -> str:
    """Remove the indentation of the later lines of a list item."""
    first, line, rest = item.partition("\n")
    return f"{first}{line}{dedent(rest)}" if not first.endswith(":") else item


def _in_words(type_name: str) -> str:
    """Return what a user would call a type."""
    if type_name.startswith("typing.Literal["):
        return f"one of {type_name.removeprefix('typing.Literal[').removesuffix(']')}"
    last = re.sub(r"<class '(.*)'>", r"\1", type_name).rpartition(".")[2]
    return _WORDS.get(last, last)


def _joined(key: str, more: str) -> str:
    return f"{key}.{more}" if key else more


def _before(key: str, link: str = ": ") -> str:
    return f"{key}{link}" if key else ""
