"""Strategies say how a run is spread over processes: one process, DDP, or weights that are cut among all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, bytes_of, check_space, local_checkpoint
from lit_align.callbacks.checkpointing.checksums import put_in_place, seal_folder
from lit_align.callbacks.checkpointing.sharded import PLAIN, like, read_plain, read_tree, split, write_rows


def strategy_of(given: str | Strategy) -> str | Strategy:
    """What ``trainer.strategy`` stands for: ``fsdp`` is ours, any other name or object is Lightning's.

    >>> strategy_of("ddp")
    'ddp'
    """
    return FullySharded() if given == "fsdp" else given


class FullySharded(ModelParallelStrategy):
    """Cuts weights, gradients and optimizer states among all processes (PyTorch's FSDP2), on GPUs or CPUs.

    A checkpoint is a folder in which every process keeps its rows. It appears whole or not at all, and any number of
    processes, of any strategy, can go on from it.

    Args:
        timeout_minutes: how long a process waits for another one that does not answer.
    """

    def __init__(self, timeout_minutes: float = 30.0) -> None:
        timeout = timedelta(minutes=timeout_minutes)
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are restored as everywhere: they lie in the checkpoint as their owner needs them."""
        return True

    def setup_environment(self) -> None:
        """Spread the data over all processes; left to itself the base class would spread it over nodes only."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Refuse a module that has not cut its weights: its processes would train apart without a word."""
        module = self.lightning_module
        left = [name for name, weight in _module(module).named_parameters() if not isinstance(weight, DTensor)]
        if left:
            raise ValueError(
                f"trainer.strategy fsdp: {type(module).__name__} does not cut its weights ({left[0]} and "
                f"{len(left) - 1} more are whole); expected a module that does, or trainer.strategy ddp"
            )
        super().setup(trainer)

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Every process's own rows."""
        return dict(_module(self.lightning_module).state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Every process's own rows, numbered as in any other checkpoint."""
        return dict(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write beside the target, seal, rename; if any process fails, all do, and what was there stays."""
        target = Path(self.broadcast(filepath))
        partial = target.with_name(f".{target.name}.{self.broadcast(os.getpid())}.tmp")
        plain, own = split(checkpoint)
        try:
            told = self._together(lambda: self._write(partial, target, own))
            starts = _starts([rows for rows in told if rows is not None])
            self._together(lambda: self._finish(partial, target, {"checkpoint": plain, "starts": starts}))
        finally:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)

    def _write(self, partial: Path, target: Path, own: Mapping[str, Any]) -> dict[str, int]:
        partial.mkdir(parents=True, exist_ok=True)
        check_space(target, bytes_of(dict(own)))
        try:
            return write_rows(partial, self.global_rank, own)
        except Exception as error:  # the library has errors of its own for a full disk
            raise OSError(f"rank {self.global_rank} could not write its part of {target}: {error}") from error

    def _finish(self, partial: Path, target: Path, plain: Mapping[str, Any]) -> None:
        if not self.is_global_zero:
            return
        torch.save(plain, partial / PLAIN)
        seal_folder(partial)
        put_in_place(partial, target)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what this process needs of a file or a folder, after it has been looked at."""
        path = Path(self.broadcast(checkpoint_path))
        found = self._together(lambda: local_checkpoint(path) if self.is_global_zero else path)[0]
        if path.is_dir():
            checkpoint: dict[str, Any] = read_tree(path)
        else:
            checkpoint = read_plain(found, mapped=True)
        if isinstance(self.checkpoint_io, AtomicCheckpointIO) and self.checkpoint_io.inspect is not None:
            self.checkpoint_io.inspect(checkpoint)
        ours = _module(self.lightning_module).state_dict()
        strange = sorted(checkpoint["state_dict"].keys() - ours.keys())
        if strange:
            raise ValueError(f"checkpoint {path} has weights that the model does not have, such as {strange[0]}")
        checkpoint["state_dict"] = {name: like(value, ours[name]) for name, value in checkpoint["state_dict"].items()}
        checkpoint["reference"] = _beside(checkpoint.get("reference", {}), self.lightning_module)
        checkpoint["optimizer_states"] = [
            _placed(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.optimizers, strict=False)
        ]
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """As in any other strategy."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """As in any other strategy."""
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def _together(self, work: Any) -> list[Any]:
        """Do something on every process; what one of them raises, all raise."""
        result, error = None, None
        try:
            result = work()
        except (OSError, ValueError) as raised:
            error = raised
        told: list[Any] = [None] * self.world_size
        dist.all_gather_object(told, (result, error))
        failed = [raised for _, raised in told if raised is not None]
        if failed:
            raise failed[0]
        return [found for found, _ in told]


def _module(module: Any) -> torch.nn.Module:
    assert isinstance(module, torch.nn.Module)
    return module


def _starts(told: list[dict[str, int]]) -> dict[str, list[int]]:
    """First row of each tensor in each process's file, from how many rows each has.

    >>> _starts([{"a": 2}, {"a": 2}, {"a": 1}])
    {'a': [0, 2, 4]}
    """
    return {name: [sum(rows[name] for rows in told[:rank]) for rank in range(len(told))] for name in told[0]}


def _beside(state: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """The weights of a moving reference, placed like those that are there; what does not fit it is refused by it."""
    reference = getattr(module, "reference", None)
    ours = {} if reference is None else reference.state_dict()
    return {name: like(value, ours[name]) if name in ours else value for name, value in state.items()}


def _placed(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state with every tensor of a weight's shape placed like that weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def placed(value: Any, weight: torch.Tensor) -> Any:
        return like(value, weight) if tuple(getattr(value, "shape", ())) == tuple(weight.shape) else value

    moved = {
        number: {key: placed(value, weights[number]) for key, value in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": moved}
