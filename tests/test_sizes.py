"""The way from a step to its loss stays short, and files stay small enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_align"


def definition(file: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """Return a class or a method from the source of a file."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{file}: {name}")


@pytest.mark.parametrize("file", ["preference", "reward", "online/module"])
def test_a_training_step_has_at_most_six_lines(file: str) -> None:
    body = definition(f"modules/{file}.py", "training_step").body
    assert 1 + body[-1].end_lineno - body[0].lineno <= 6  # type: ignore[operator]


@pytest.mark.parametrize(("name", "most"), [("Reweighted", 40), ("WeightedSum", 90)])
def test_combinations_are_short(name: str, most: int) -> None:
    node = definition("objectives/combine.py", name)
    assert 1 + node.end_lineno - node.lineno <= most  # type: ignore[operator]


def test_files_can_be_read_at_once() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {file: count for file, count in lines.items() if count > 400} == {}
