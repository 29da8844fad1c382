"""A sharded checkpoint is a folder: every process writes its own rows of each tensor, rank zero all else."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

PLAIN = "plain.pt"
"""The checkpoint with a ``Rows`` record, as plain data, in the place of each sharded tensor."""
_KEY = "rows of"

Tree: TypeAlias = Any
"""Nested mappings and lists of tensors and plain data."""


@final
@dataclass(frozen=True)
class Rows:
    """A tensor whose rows (first axis) lie in several files.

    Args:
        name: the tensor's, the same in every file.
        shape: of the whole.
        folder: of the files.
        starts: for each file, in order, the first row that it has; the rows of a file end where the next begin.
    """

    name: str
    shape: tuple[int, ...]
    folder: Path
    starts: tuple[int, ...]

    def read(self, first: int, last: int) -> Tensor:
        """Rows ``first`` up to ``last``, without reading the others."""
        parts = []
        for rank, (start, end) in enumerate(zip(self.starts, (*self.starts[1:], self.shape[0]), strict=True)):
            here = slice(max(first, start) - start, min(last, end) - start)
            if here.start < here.stop:
                with safe_open(shard_file(self.folder, rank), framework="pt") as file:
                    parts.append(file.get_slice(self.name)[here])
        if not parts:
            with safe_open(shard_file(self.folder, 0), framework="pt") as file:
                parts.append(file.get_slice(self.name)[0:0])
        return torch.cat(parts)


def shard_file(folder: Path, rank: int) -> Path:
    """Where a process keeps its rows.

    >>> shard_file(Path("step=5.ckpt"), 3).as_posix()
    'step=5.ckpt/rows-00003.safetensors'
    """
    return folder / f"rows-{rank:05d}.safetensors"


def split(tree: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """Part a checkpoint into plain data and this process's rows.

    Args:
        tree: a checkpoint whose sharded tensors are ``DTensor``.

    Returns:
        The checkpoint with a small mapping in the place of each sharded tensor; and name → own rows, on the CPU.

    Raises:
        ValueError: a tensor is cut along another axis than its rows.
    """
    own: dict[str, Tensor] = {}

    def leaf(value: Any, name: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        if tuple(value.placements) != (Shard(0),):
            raise ValueError(f"{name} is placed {value.placements}; expected tensors that are cut along their rows")
        own[name] = value.to_local().detach().cpu().clone()
        return {_KEY: name, "shape": list(value.shape)}

    return _mapped(tree, leaf), own


def write_rows(folder: Path, rank: int, own: Mapping[str, Tensor]) -> dict[str, int]:
    """Write this process's rows; name → how many there are."""
    save_file(dict(own), shard_file(folder, rank))
    return {name: len(rows) for name, rows in own.items()}


def read_plain(file: Path, map_location: Any = None, mapped: bool = False) -> Any:
    """What ``torch.save`` wrote, as long as it is tensors and plain data.

    Args:
        file: to read.
        map_location: as ``torch.load`` takes it; None for the CPU.
        mapped: leave the tensors on the disk until they are used.

    Raises:
        ValueError: it is something else; nothing that it names is run.
    """
    try:
        return torch.load(file, map_location=map_location or "cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # its text advises to load the file without the safeguard
        raise ValueError(f"checkpoint {file} holds more than tensors and plain data") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"checkpoint {file} is not a checkpoint: {error}") from error


def read_tree(folder: Path) -> Tree:
    """The checkpoint in a folder, with ``Rows`` in the place of each sharded tensor; nothing large is read."""
    stored = read_plain(folder / PLAIN)
    starts: dict[str, list[int]] = stored["starts"]

    def found(value: Any) -> Any:
        if isinstance(value, dict) and _KEY in value:
            name = value[_KEY]
            return Rows(name, tuple(value["shape"]), folder, tuple(starts[name]))
        if isinstance(value, dict):
            return {key: found(part) for key, part in value.items()}
        return [found(part) for part in value] if isinstance(value, list) else value

    return found(stored["checkpoint"])


def whole(tree: Tree) -> Tree:
    """The checkpoint with every sharded tensor read as a whole."""
    return _mapped(tree, lambda value, _: value.read(0, value.shape[0]) if isinstance(value, Rows) else value)


def like(value: Tensor | Rows, other: Tensor) -> Tensor:
    """A stored tensor in the place of one of the model: the same rows of it on the same process.

    Args:
        value: the whole tensor, or where its rows lie.
        other: the model's; only its placement is used.

    Raises:
        ValueError: the shapes differ.
    """
    if tuple(value.shape) != tuple(other.shape):
        raise ValueError(f"the checkpoint has a tensor of shape {tuple(value.shape)}, the model {tuple(other.shape)}")
    if not isinstance(other, DTensor):
        return value.read(0, value.shape[0]) if isinstance(value, Rows) else value
    mine, mesh = len(other.to_local()), other.device_mesh
    first = -(-other.shape[0] // mesh.size()) * mesh.get_local_rank()
    first = min(first, other.shape[0])
    rows = value.read(first, first + mine) if isinstance(value, Rows) else value[first : first + mine].clone()
    return DTensor.from_local(
        rows.to(other.device), mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )


def _mapped(tree: Tree, leaf: Callable[[Any, str], Any], name: str = "") -> Tree:
    if isinstance(tree, dict):
        return {key: _mapped(value, leaf, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, leaf, f"{name}.{place}") for place, value in enumerate(tree)]
    return leaf(tree, name)
