"""Modules of a user's own, which the command line has named as trusted (``--extend``)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from lit_align.errors import shown

_OWN = "lit_align"
_trusted: set[str] = set()


def trust(modules: Iterable[str]) -> None:
    """Allow settings to name functions of these modules, for this process."""
    _trusted.update(modules)


def import_trusted(name: str, setting: str) -> Any:
    """Import what a setting names, if it is of lit_align or of a module that is trusted.

    Args:
        name: dotted path of a function.
        setting: that names it, for messages.

    Raises:
        ValueError: it is of another module, or does not exist.
    """
    module, _, function = name.rpartition(".")
    if not _is_trusted(module):
        raise ValueError(_refusal(name, setting))
    try:
        target = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{setting}: {shown(name)} cannot be imported: {error}; expected module.function") from error
    # the module may have imported the name from another one
    if not _is_trusted(getattr(target, "__module__", None) or type(target).__module__):
        raise ValueError(_refusal(name, setting))
    return target


def _is_trusted(module: str) -> bool:
    top = module.partition(".")[0]
    return top == _OWN or bool(_trusted & {module, top})


def _refusal(name: str, setting: str) -> str:
    extend = name.partition(".")[0]
    return (
        f"{setting}: importing {shown(name)} is not allowed; expected module.function of code that the command line "
        f"names: --extend {extend}"
    )
