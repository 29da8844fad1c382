"""Signatures of classes and functions, read from their source: nothing is imported, so that help comes at once.

What cannot be told from the source alone is None or empty: whoever asks leaves it to the parser, which imports.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_ENTRY = re.compile(r"(?P<indent> *)(?P<name>\w+)(?: *\([^)]*\))?: *(?P<text>.*)")
_CLASS = re.compile(r"^class (\w+)\(([^)]*)", re.MULTILINE)
_WORD = re.compile(r"\w+")
ANY_NAME = "**"
"""Name of the parameter that takes any name."""


@dataclass(frozen=True)
class Definition:
    """A class, a function, or the value of an assignment, and the module in which it stands."""

    module: str
    node: ast.AST

    @property
    def name(self) -> str:
        """Name of the class or function; empty for the value of an assignment."""
        return getattr(self.node, "name", "")

    @property
    def docstring(self) -> str:
        """The docstring, without indentation; that of ``__init__`` is joined to that of a class."""
        nodes = [self.node, _constructor(self.node)]
        documented = (node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef))
        return "\n".join(inspect.cleandoc(ast.get_docstring(node) or "") for node in documented)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class or function.

    Args:
        name: of the parameter.
        annotation: its type; None for none.
        default: its default; None if it is required.
        module: in which the names of annotation and default have a meaning.
        help: what the docstring says of it, on one line.
    """

    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    module: str
    help: str


@cache
def source_of_module(module: str) -> Path | None:
    """Return the file of a module, whose packages are not imported for it; None if there is none."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    candidates = (Path(root, *rest) for root in roots)
    files = (file for path in candidates for file in (path / "__init__.py", path.with_name(f"{path.name}.py")))
    return next((file for file in files if file.is_file()), None)


@cache
def names_in(module: str) -> tuple[dict[str, ast.AST | tuple[str, str]], list[str]]:
    """Return what the names of a module stand for, a definition or a name elsewhere, and its star imports."""
    path = source_of_module(module)
    names: dict[str, ast.AST | tuple[str, str]] = {}
    stars: list[str] = []
    for node in _statements(ast.parse(path.read_text("utf-8")).body if path is not None else []):
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                names[node.name] = node
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                names[name] = value
            case ast.ImportFrom():
                origin = _absolute(module, path, node)
                stars += [origin for alias in node.names if alias.name == "*"]
                names |= {alias.asname or alias.name: (origin, alias.name) for alias in node.names}
    return names, stars


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those under ``if`` and ``try`` included."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        else:
            yield node


def _absolute(module: str, path: Path | None, node: ast.ImportFrom) -> str:
    """Return the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    is_package = path is not None and path.name == "__init__.py"
    parts = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


@cache
def find_definition(module: str, name: str) -> Definition | None:
    """Find the definition of a name, through imports; None for what is built in or not found."""
    names, stars = names_in(module)
    target = names.get(name)
    if isinstance(target, tuple):
        return find_definition(*target) if target != (module, name) else None  # a module inside of the package
    if target is not None:
        return Definition(module, target)
    return next((definition for star in stars if (definition := find_definition(star, name)) is not None), None)


def bases(definition: Definition) -> list[Definition]:
    """Return the base classes of a class that are found."""
    nodes = definition.node.bases if isinstance(definition.node, ast.ClassDef) else []
    names = (node.value if isinstance(node, ast.Subscript) else node for node in nodes)
    parents = (find_definition(definition.module, node.id) for node in names if isinstance(node, ast.Name))
    return [parent for parent in parents if parent is not None]


def is_subclass(definition: Definition, base: Definition) -> bool:
    """Return whether a class is a base class or derives from it."""
    return definition == base or any(is_subclass(parent, base) for parent in bases(definition))


def is_abstract(definition: Definition) -> bool:
    """Return whether a class names ``ABC`` among its bases or leaves an abstract method open."""
    node = definition.node
    return isinstance(node, ast.ClassDef) and (
        "ABC" in map(ast.unparse, node.bases) or bool(_open_methods(definition))
    )


def _open_methods(definition: Definition) -> set[str]:
    """Return the names of the abstract methods that a class has or inherits and does not implement."""
    inherited = {name for parent in bases(definition) for name in _open_methods(parent)}
    own = {
        getattr(part, "name", None) or ast.unparse(getattr(part, "target", part)): part
        for part in getattr(definition.node, "body", [])
    }
    abstract = {name for name, part in own.items() if "abstractmethod" in map(ast.unparse, _decorators(part))}
    return (inherited - set(own)) | abstract


def _decorators(node: ast.AST) -> list[ast.expr]:
    return node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


def is_plain_record(definition: Definition) -> bool:
    """Return whether a class is a dataclass without bases, whose fields the parser takes as keys of their own."""
    node = definition.node
    return isinstance(node, ast.ClassDef) and not node.bases and _is_dataclass(node)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in _decorators(node))


def parameters(definition: Definition) -> tuple[Parameter, ...]:
    """Return the parameters of a class's constructor or of a function."""
    texts = documented_arguments(definition.docstring)
    node = definition.node
    function = node if isinstance(node, ast.FunctionDef) else _constructor(node)
    if function is not None:
        return tuple(_of_function(function, definition.module, texts))
    if isinstance(node, ast.ClassDef) and _is_dataclass(node):
        return tuple(_of_dataclass(definition, texts).values())
    return next(filter(None, map(parameters, bases(definition))), ())


def _constructor(node: ast.AST) -> ast.FunctionDef | None:
    body = node.body if isinstance(node, ast.ClassDef) else []
    return next((part for part in body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)


def _of_function(function: ast.FunctionDef, module: str, texts: dict[str, str]) -> Iterator[Parameter]:
    positional = [*function.args.posonlyargs, *function.args.args]
    defaults: dict[ast.arg, ast.expr | None] = dict(
        zip(reversed(positional), reversed(function.args.defaults), strict=False)
    )
    defaults.update(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))
    for argument in (*positional, *function.args.kwonlyargs):
        if argument.arg not in ("self", "cls"):
            text = texts.get(argument.arg, "")
            yield Parameter(argument.arg, argument.annotation, defaults.get(argument), module, text)
    if function.args.kwarg is not None:
        yield Parameter(ANY_NAME, None, None, module, "")


def _of_dataclass(definition: Definition, texts: dict[str, str]) -> dict[str, Parameter]:
    """Return the fields of a dataclass, those of its bases first."""
    fields: dict[str, Parameter] = {}
    for parent in reversed(bases(definition)):
        if isinstance(parent.node, ast.ClassDef) and _is_dataclass(parent.node):
            fields |= _of_dataclass(parent, documented_arguments(parent.docstring))
    assert isinstance(definition.node, ast.ClassDef)
    for part in definition.node.body:
        match part:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=value) if not ast.unparse(
                annotation
            ).startswith("ClassVar"):
                fields[name] = Parameter(name, annotation, value, definition.module, texts.get(name, ""))
    return fields


def documented_arguments(docstring: str) -> dict[str, str]:
    r"""Return the texts of the section ``Args`` of a docstring in Google's style, each on one line.

    >>> documented_arguments("Train.\n\nArgs:\n    lr: the rate,\n        above 0.\n    steps: how many.\n")
    {'lr': 'the rate, above 0.', 'steps': 'how many.'}
    """
    lines = docstring.partition("Args:\n")[2].splitlines()
    texts: dict[str, list[str]] = {}
    indent, name = None, ""
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and (depth == 0 or (indent is not None and depth < indent)):
            break
        entry = _ENTRY.fullmatch(line)
        if entry and (indent is None or depth == indent):
            indent, name = depth, entry["name"]
            texts[name] = [entry["text"]]
        elif name and line.strip():
            texts[name].append(line.strip())
    return {key: " ".join(parts).strip() for key, parts in texts.items()}


@cache
def modules_of(package: str) -> tuple[str, ...]:
    """Return the modules inside a package, by their files."""
    path = source_of_module(package)
    if path is None or path.name != "__init__.py":
        return (package,)
    files = (file.relative_to(path.parent).with_suffix("") for file in sorted(path.parent.rglob("*.py")))
    parts = ([part for part in file.parts if part != "__init__"] for file in files)
    return tuple(".".join([package, *part]) for part in parts)


@cache
def source_text(module: str) -> str:
    """Return the source of a module; empty if there is none."""
    path = source_of_module(module)
    return path.read_text("utf-8") if path is not None else ""


@cache
def subclasses(base: Definition, packages: tuple[str, ...]) -> dict[str, Definition]:
    """Return the classes in some packages that derive from a base class and can be built, by name."""
    known: dict[str, Definition] = {}
    pending = [base]
    while pending:
        parent = pending.pop()
        mentions = [mention for package in packages for mention in _mentions(package).get(parent.name, ())]
        for module, name in mentions:
            child = find_definition(module, name)
            if child is not None and name not in known and parent in bases(child):
                known[name] = child
                pending.append(child)
    return {name: child for name, child in known.items() if not is_abstract(child) and not name.startswith("_")}


@cache
def _mentions(package: str) -> dict[str, list[tuple[str, str]]]:
    """Return, for each word between the brackets of a class statement, the module and name of each such class."""
    mentions: dict[str, list[tuple[str, str]]] = {}
    for module in modules_of(package):
        for name, listed in _CLASS.findall(source_text(module)):
            for word in set(_WORD.findall(listed)):
                mentions.setdefault(word, []).append((module, name))
    return mentions
