"""Grid files: the settings that a sweep varies, and the cells that they make. Nothing is imported for them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lit_align.cli import with_shipped_configurations
from lit_align.cli.configuration import read_configuration
from lit_align.cli.early_checks import check_command_line
from lit_align.cli.suggestions import did_you_mean, near
from lit_align.errors import shown
from lit_align.sweep.search import Search, read_search

CellValues: TypeAlias = dict[str, Any]
"""Dotted key → value."""
GRID_KEYS = ("base", "grid", "seeds", "run", "metrics", "share_reference", "evaluate", "search")
OWN_KEYS = {
    "run": "the sweep gives each cell a folder of its own; name the sweep's by run at the top of the grid",
    "seed_everything": "name the seeds by seeds at the top of the grid",
    "ckpt_path": "a cell goes on from its own newest checkpoint",
}
"""Keys of a run that a sweep sets itself, and what to do instead."""
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Cell:
    """A run of a sweep.

    Args:
        setting: name of its settings, the same for all seeds.
        seed: of the run.
        values: what the grid sets for it.
        folder: of the run.
        arguments: of ``fit`` for it, without those that share caches.
    """

    setting: str
    seed: int
    values: Mapping[str, Any]
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the cell, which is that of its folder."""
        return self.folder.name


@dataclass(frozen=True)
class Grid:
    """What a grid file asks for.

    Args:
        folder: of the sweep.
        cells: its runs, the seeds of a setting one after another.
        metrics: names of the metrics to report; empty for the default ones.
        share_reference: compute the reference's log-probabilities once for all cells.
        evaluate: options of ``evaluate``; None to leave it out.
        search: settings that are searched for; the cells are then made by ``searched_cells``.
        seeds: of each setting.
        base: arguments of ``fit`` that all cells share.
    """

    folder: Path
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    share_reference: bool
    evaluate: Mapping[str, Any] | None
    search: Search | None = None
    seeds: tuple[int, ...] = ()
    base: tuple[str, ...] = ()


def read_grid(file: Path, options: Sequence[str] = (), folder: Path | None = None) -> Grid:
    """Read a grid file and make its cells.

    Args:
        file: YAML with the keys ``base``, ``grid`` or ``search``, and ``seeds``, and optionally ``run``, ``metrics``,
            ``share_reference`` and ``evaluate``.
        options: of the command line, for every cell.
        folder: of the sweep, instead of the file's ``run``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or a key or value in it is not what it should be; names file and key.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a grid (base, grid and seeds)")
    content, _ = read_configuration(str(file))
    try:
        _check_keys(content)
        folder = folder or Path(_typed(content, "run", str, f"runs/{file.stem}"))
        search = read_search(content["search"]) if "search" in content else None
        if search is not None and "grid" in content:
            raise ValueError("search and grid: expected one of the two; a part of the space may be {choices: [...]}")
        settings = expand({key: [value] for key, value in _corner(search).items()} if search else _grid_of(content))
        seeds = _seeds(content.get("seeds", [0]))
        base = [*_base(content.get("base", []), file.parent), *options]
        _check_options(options, settings)
        names = name_settings(settings)
        cells = tuple(
            _cell(folder, name, values, seed, base)
            for name, values in zip(names, settings, strict=True)
            for seed in seeds
        )
        return Grid(
            folder,
            cells,
            tuple(map(str, _typed(content, "metrics", list, []))),
            _typed(content, "share_reference", bool, True),
            _typed(content, "evaluate", dict, None),
            search,
            tuple(seeds),
            tuple(base),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _grid_of(content: Mapping[Any, Any]) -> dict[Any, Any]:
    grid: dict[Any, Any] = _typed(content, "grid", dict, {})
    return grid


def _corner(search: Search) -> CellValues:
    """Return one setting of a search, by which its keys are checked before any trial."""
    return {key: part["choices"][0] if "choices" in part else part["low"] for key, part in search.space.items()}


def searched_cells(grid: Grid, number: int, values: CellValues) -> tuple[Cell, ...]:
    """Return the cells of a trial, one for each seed."""
    parts = [_label(key, _short(key, list(values)), _rounded(value)) for key, value in values.items()]
    name = _unique(f"trial={number}-{'-'.join(parts)}", values, False)
    return tuple(_cell(grid.folder, name, values, seed, grid.base) for seed in grid.seeds)


def _rounded(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _check_keys(content: Mapping[Any, Any]) -> None:
    for key in content:
        if key not in GRID_KEYS:
            hint = did_you_mean(near(str(key), GRID_KEYS)) or f"; expected {', '.join(GRID_KEYS)}"
            hint = "; the keys of a run stand under base or grid" if "." in str(key) else hint
            raise ValueError(f"{key}: no such key{hint}")
    if not content.get("base"):
        raise ValueError("base is missing; expected a configuration file, or keys of a run")


def _typed(content: Mapping[Any, Any], key: str, kind: type, default: Any) -> Any:
    value = content.get(key, default)
    if value is not default and not isinstance(value, kind):
        words = {str: "text", dict: "a mapping", list: "a list", bool: "true or false"}
        raise ValueError(f"{key} is {shown(value)}; expected {words[kind]}")
    return value


def _seeds(value: Any) -> list[int]:
    """Return the seeds, which are a list or their number."""
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {shown(value)}; expected a list of different whole numbers, or how many seeds")
    return list(seeds)


def _base(base: Any, folder: Path) -> Iterator[str]:
    """Yield the options for what all cells share: files, keys, or a list of both.

    Args:
        base: of the grid file.
        folder: of the grid file, in which a file is looked for that is not in the working folder. A name that is
            neither is that of a configuration that ships with the package.
    """
    for part in base if isinstance(base, list) else [base]:
        if isinstance(part, str):
            beside = folder / part
            own = str(beside) if not Path(part).is_file() and beside.is_file() else part
            yield from with_shipped_configurations(["--config", own])
        elif isinstance(part, dict):
            nested = {key: value for key, value in part.items() if "." not in str(key)}
            yield from ("--config", json.dumps(nested)) if nested else ()
            yield from as_options({str(key): value for key, value in part.items() if "." in str(key)})
        else:
            raise ValueError(f"base is {shown(part)}; expected a configuration file, or keys of a run")


def as_options(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words of a command line that set keys, a class before its options.

    >>> list(as_options({"model.objective.beta": 0.1, "model.objective": "dpo"}))
    ['--model.objective', 'dpo', '--model.objective.beta', '0.1']
    """
    for key in sorted(values, key=lambda key: key.count(".")):
        value = values[key]
        yield from (f"--{key}", value if isinstance(value, str) else json.dumps(value))


def expand(grid: Mapping[Any, Any]) -> list[CellValues]:
    """Return the settings of a grid, each a choice from every axis.

    An axis lists values of its key. An item that maps dotted keys to values sets these together; a list in it is
    crossed.

    Raises:
        ValueError: an axis has no items, sets no key, or sets the key of another one.

    >>> expand(
    ...     {"model.optimizer.lr": [1, 2], "objective": [{"model.objective": "dpo", "model.objective.beta": [3, 4]}]}
    ... )
    ... # doctest: +ELLIPSIS
    [{'model.optimizer.lr': 1, 'model.objective': 'dpo', 'model.objective.beta': 3}, ...]
    """
    axes = [list(_choices(str(axis), items)) for axis, items in grid.items()]
    settings = []
    for choices in itertools.product(*axes):
        keys = Counter(key for choice in choices for key in choice)
        for key, count in keys.items():
            if count > 1:
                raise ValueError(f"grid: {key} is set by two axes; expected it in one")
            if key in OWN_KEYS:
                raise ValueError(f"grid: {key} cannot be varied; {OWN_KEYS[key]}")
        settings.append({key: value for choice in choices for key, value in choice.items()})
    return settings


def _choices(axis: str, items: Any) -> Iterator[CellValues]:
    if not isinstance(items, list) or not items:
        raise ValueError(f"grid.{axis} is {shown(items)}; expected a list of values")
    for item in items:
        if isinstance(item, dict) and item and all("." in str(key) for key in item):
            lists = [value if isinstance(value, list) else [value] for value in item.values()]
            yield from (dict(zip(map(str, item), values, strict=True)) for values in itertools.product(*lists))
        elif "." in axis or axis in (*OWN_KEYS, "task", "on_changed_settings"):
            yield {axis: item}
        else:
            raise ValueError(
                f"grid.{axis} holds {shown(item)}; expected keys of a run with values that belong together, such as "
                "{model.objective: dpo, model.objective.beta: [0.1, 0.3]}, as the axis is no key of a run itself"
            )


def name_settings(settings: Sequence[CellValues]) -> list[str]:
    """Return a readable name for each setting, made of what varies and fit for a folder.

    >>> name_settings([{"model.objective": "dpo", "data.batch_size": size} for size in (8, 16)])
    ['batch_size=8', 'batch_size=16']
    """
    keys = list(dict.fromkeys(key for values in settings for key in values))
    varied = [key for key in keys if len({json.dumps(values.get(key, "—")) for values in settings}) > 1]
    labels = {key: _short(key, keys) for key in keys}
    names = ["-".join(_label(key, labels[key], values[key]) for key in values if key in varied) for values in settings]
    counts = Counter(names)
    return [_unique(name or "run", values, counts[name] > 1) for name, values in zip(names, settings, strict=True)]


def _short(key: str, keys: Iterable[str]) -> str:
    """Return the shortest end of a key that no other key has."""
    parts = key.split(".")
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1), key)


def _label(key: str, label: str, value: Any) -> str:
    text = _text(value)
    text = text if key == "model.objective" else f"{label}={text}"
    return re.sub(r"[^\w.=+]+", "_", text).strip("_")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        options = value.get("init_args", {key: part for key, part in value.items() if key != "class_path"})
        name = str(value.get("class_path", "")).rpartition(".")[2]
        return "_".join([name, *(f"{key}={_text(part)}" for key, part in dict(options).items())]).strip("_")
    if isinstance(value, list):
        return "+".join(map(_text, value))
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def _unique(name: str, values: CellValues, repeated: bool) -> str:
    """Add a digest of the values to a name that is too long, or that another setting has."""
    if not repeated and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}"


def _cell(folder: Path, name: str, values: CellValues, seed: int, base: Sequence[str]) -> Cell:
    run = folder / f"{name}-seed={seed}"
    own = ("--run", str(run), "--seed_everything", str(seed))
    return Cell(name, seed, values, run, (*base, *as_options(values), *own))


def _check_options(options: Sequence[str], settings: Sequence[CellValues]) -> None:
    """Raise for an option that the grid varies or that a sweep sets itself."""
    varied = {key for values in settings for key in values}
    for word in options:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key in OWN_KEYS:
            raise ValueError(f"--{key}: {OWN_KEYS[key]}")
        if word.startswith("--") and key in varied:
            raise ValueError(f"--{key}: the grid sets it; expected it in one of the two")


def check_cells(cells: Sequence[Cell]) -> list[str]:
    """Return the mistakes in the configurations of all cells, each with the cells that have it."""
    having: dict[str, list[str]] = {}
    for setting, cell in {cell.setting: cell for cell in reversed(cells)}.items():
        for mistake in check_command_line(["fit", *cell.arguments], reads_files=False):
            having.setdefault(mistake, []).append(setting)
    total = len({cell.setting for cell in cells})
    return [f"{_where(names, total)}{mistake}" for mistake, names in having.items()]


def _where(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return ""
    return f"{names[-1]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: "
