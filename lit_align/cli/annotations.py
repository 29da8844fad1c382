"""Types and defaults of parameters, read from the source of their annotations."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from lit_align.cli.signatures import Definition, Parameter, find_definition

_SIMPLE = ("int", "float", "bool", "str", "None", "list", "dict", "tuple", "Path")


@dataclass(frozen=True)
class Kind:
    """One of the types that a parameter may have.

    Args:
        name: ``int``, ``list``, ``Literal``, the name of a class, or the source of what is none of these.
        choices: the values of a ``Literal``.
        definition: of a class; None for other types.
    """

    name: str
    choices: tuple[object, ...] = ()
    definition: Definition | None = None


def kinds(module: str, annotation: ast.expr | None) -> list[Kind]:
    """Return the types that an annotation allows, unions and aliases taken apart.

    Args:
        module: in which the annotation stands.
        annotation: of a parameter; None for none, which allows anything.
    """
    match annotation:
        case None:
            return [Kind("Any")]
        case ast.Constant(value=str(text)):
            return kinds(module, ast.parse(text, mode="eval").body)
        case ast.Constant(value=None):
            return [Kind("None")]
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return [*kinds(module, left), *kinds(module, right)]
        case ast.Subscript(value=ast.Name(id=name), slice=inner):
            return _subscripted(module, name, inner, annotation)
        case ast.Name(id=name) if name in _SIMPLE:
            return [Kind(name)]
        case ast.Name(id=name):
            return _named(module, name)
    return [Kind(ast.unparse(annotation))]


def _subscripted(module: str, name: str, inner: ast.expr, annotation: ast.expr) -> list[Kind]:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Union":
        return [kind for part in parts for kind in kinds(module, part)]
    if name == "Optional":
        return [*kinds(module, inner), Kind("None")]
    if name == "Literal":
        return [Kind("Literal", tuple(part.value for part in parts if isinstance(part, ast.Constant)))]
    if name in ("List", "Dict", "Tuple"):
        return [Kind(name.lower())]
    return [Kind(name if name in _SIMPLE else ast.unparse(annotation))]


def _named(module: str, name: str) -> list[Kind]:
    definition = find_definition(module, name)
    if definition is None or isinstance(definition.node, ast.FunctionDef):
        return [Kind(name)]
    if isinstance(definition.node, ast.ClassDef):
        return [Kind(name, definition=definition)]
    assert isinstance(definition.node, ast.expr)
    return kinds(definition.module, definition.node)


def constant(parameter: Parameter) -> object:
    """Return the value of a default that is a literal, or the name of one.

    Raises:
        ValueError: there is no default, or it is neither.
    """
    node = parameter.default
    if isinstance(node, ast.Name) and (definition := find_definition(parameter.module, node.id)) is not None:
        node = definition.node if isinstance(definition.node, ast.expr) else None
    if node is None:
        raise ValueError(f"{parameter.name} has no constant as its default")
    return ast.literal_eval(node)
