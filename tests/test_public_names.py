"""One public name, one meaning: no class or function of the package is defined at top level in two modules."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lit_align"
ENTRY_POINTS = {"main"}
"""Names that are the same on purpose: what each command line is started with."""
TO_BE_RENAMED = {"Settings", "Writer", "write_rows"}
"""Names that are still defined twice."""


def public_names(source: str) -> list[str]:
    """Return the classes and functions at top level whose names do not begin with an underscore."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")]


def test_no_public_name_is_defined_twice() -> None:
    names = Counter(name for path in PACKAGE.rglob("*.py") for name in set(public_names(path.read_text("utf-8"))))
    twice = {name for name, count in names.items() if count > 1}
    assert sorted(twice - ENTRY_POINTS - TO_BE_RENAMED) == []


def test_names_are_found() -> None:
    assert public_names("class A: ...\ndef b(): ...\ndef _c(): ...\nd = 1") == ["A", "b"]
