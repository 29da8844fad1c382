"""Checks that a library still has the private parts that ``lit_align.compat`` uses."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pkgutil import resolve_name

import pytest


def check_private_part(path: str, parameters: str | None, used_by: str) -> None:
    """Fail with a plain message if a private part is gone or takes other parameters.

    Args:
        path: ``module:attribute``.
        parameters: names of a function's parameters, comma separated; None for what is not called.
        used_by: the function of ``lit_align.compat`` to look at.
    """
    library = re.split(r"[.:]", path)[0]
    where = f"in {library} {version(library)}; look at lit_align.compat.{used_by}"
    try:
        part = resolve_name(path)
    except (ImportError, AttributeError):
        pytest.fail(f"{path} is gone {where}")
    if parameters is not None:
        names = ", ".join(inspect.signature(part).parameters)
        assert names == parameters, f"{path} takes ({names}) instead of ({parameters}) {where}"
