"""No public class, function or constant of the package is defined in two modules."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lit_align"
ENTRY_POINTS = {"main"}
"""Names that are the same on purpose: what each command line is started with."""


def public_names(source: str) -> list[str]:
    """Return the names defined at top level that do not begin with an underscore."""
    names = []
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.Assign(targets=targets):
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def test_no_public_name_is_defined_twice() -> None:
    names = Counter(name for path in PACKAGE.rglob("*.py") for name in set(public_names(path.read_text("utf-8"))))
    twice = {name for name, count in names.items() if count > 1}
    assert sorted(twice - ENTRY_POINTS) == []


def test_names_are_found() -> None:
    assert public_names("class A: ...\ndef b(): ...\ndef _c(): ...\nd = 1\ne: int = 2") == ["A", "b", "d", "e"]
