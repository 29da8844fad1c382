"""Reads and writes sharded checkpoints: each process writes its rows of each tensor, rank zero everything else."""

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
"""The checkpoint with a small mapping in place of each sharded tensor."""
_KEY = "rows of"

Tree: TypeAlias = Any
"""Nested mappings and lists of tensors and plain data."""


@final
@dataclass(frozen=True)
class ShardedTensor:
    """A stored tensor whose rows (first axis) are spread over several files.

    Args:
        name: of the tensor in every file.
        shape: of the whole tensor.
        folder: of the files.
        starts: the first row of each file, in order; the rows of a file end where those of the next begin.
    """

    name: str
    shape: tuple[int, ...]
    folder: Path
    starts: tuple[int, ...]

    def read(self, first: int, last: int) -> Tensor:
        """Read rows ``first`` up to ``last`` without reading the others."""
        parts = []
        for rank, (start, end) in enumerate(zip(self.starts, (*self.starts[1:], self.shape[0]), strict=True)):
            local = slice(max(first, start) - start, min(last, end) - start)
            if local.start < local.stop:
                with safe_open(shard_file(self.folder, rank), framework="pt") as file:
                    parts.append(file.get_slice(self.name)[local])
        if not parts:
            with safe_open(shard_file(self.folder, 0), framework="pt") as file:
                parts.append(file.get_slice(self.name)[0:0])
        return torch.cat(parts)


def shard_file(folder: Path, rank: int) -> Path:
    """Return the file of a process's rows.

    >>> shard_file(Path("step=5.ckpt"), 3).as_posix()
    'step=5.ckpt/rows-00003.safetensors'
    """
    return folder / f"rows-{rank:05d}.safetensors"


def split_checkpoint(tree: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """Split a checkpoint into plain data and this process's rows of its sharded tensors.

    Args:
        tree: a checkpoint whose sharded tensors are ``DTensor``.

    Returns:
        The checkpoint with a small mapping in place of each sharded tensor; and name → local rows, on the CPU.

    Raises:
        ValueError: a tensor is sharded along another axis than its rows.
    """
    local_rows: dict[str, Tensor] = {}

    def leaf(value: Any, name: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        if tuple(value.placements) != (Shard(0),):
            raise ValueError(f"{name} is placed {value.placements}; expected tensors sharded along their rows")
        local_rows[name] = value.to_local().detach().cpu().clone()
        return {_KEY: name, "shape": list(value.shape)}

    return _map_leaves(tree, leaf), local_rows


def write_local_rows(folder: Path, rank: int, local_rows: Mapping[str, Tensor]) -> dict[str, int]:
    """Write this process's rows; return the number of rows by name."""
    save_file(dict(local_rows), shard_file(folder, rank))
    return {name: len(rows) for name, rows in local_rows.items()}


def read_plain(file: Path, map_location: Any = None, memory_map: bool = False) -> Any:
    """Read a file of ``torch.save`` that holds only tensors and plain data.

    Args:
        file: to read.
        map_location: as ``torch.load`` takes it; None for the CPU.
        memory_map: leave the tensors on the disk until they are used.

    Raises:
        ValueError: it holds something else, of which nothing is executed; or it is no such file.
    """
    try:
        return torch.load(file, map_location=map_location or "cpu", weights_only=True, mmap=memory_map)
    except pickle.UnpicklingError as error:  # its message advises to load the file without this protection
        raise ValueError(f"checkpoint {file} holds more than tensors and plain data") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"checkpoint {file} is not a checkpoint: {error}") from error


def read_folder(folder: Path) -> Tree:
    """Read a sharded checkpoint, with a ``ShardedTensor`` in place of each sharded tensor."""
    stored = read_plain(folder / PLAIN)
    starts: dict[str, list[int]] = stored["starts"]

    def restore(value: Any) -> Any:
        if isinstance(value, dict) and _KEY in value:
            name = value[_KEY]
            return ShardedTensor(name, tuple(value["shape"]), folder, tuple(starts[name]))
        if isinstance(value, dict):
            return {key: restore(part) for key, part in value.items()}
        return [restore(part) for part in value] if isinstance(value, list) else value

    return restore(stored["checkpoint"])


def read_whole(folder: Path) -> Tree:
    """Read a sharded checkpoint with every tensor as a whole."""
    return _map_leaves(read_folder(folder), lambda value, _: _whole_tensor(value))


def _whole_tensor(value: Any) -> Any:
    return value.read(0, value.shape[0]) if isinstance(value, ShardedTensor) else value


def place_like(value: Tensor | ShardedTensor, other: Tensor) -> Tensor:
    """Give a stored tensor the placement of one of the model: the same rows of it on the same process.

    Args:
        value: the stored tensor.
        other: the model's; only its placement is used.

    Raises:
        ValueError: the shapes differ.
    """
    if tuple(value.shape) != tuple(other.shape):
        raise ValueError(f"the checkpoint has a tensor of shape {tuple(value.shape)}, the model {tuple(other.shape)}")
    if not isinstance(other, DTensor):
        tensor: Tensor = _whole_tensor(value)
        return tensor
    count, mesh = len(other.to_local()), other.device_mesh
    rows_per_process = -(-other.shape[0] // mesh.size())
    first = min(rows_per_process * mesh.get_local_rank(), other.shape[0])
    last = first + count
    rows = value.read(first, last) if isinstance(value, ShardedTensor) else value[first:last].clone()
    return DTensor.from_local(
        rows.to(other.device), mesh, other.placements, run_check=False, shape=other.shape, stride=other.stride()
    )


def _map_leaves(tree: Tree, leaf: Callable[[Any, str], Any], name: str = "") -> Tree:
    if isinstance(tree, dict):
        return {key: _map_leaves(value, leaf, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map_leaves(value, leaf, f"{name}.{place}") for place, value in enumerate(tree)]
    return leaf(tree, name)
