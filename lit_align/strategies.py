"""The strategy ``fsdp``: weights, gradients and optimizer states are sharded over all processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, bytes_of, check_space, local_checkpoint
from lit_align.callbacks.checkpointing.checksums import put_in_place, write_manifest
from lit_align.callbacks.checkpointing.sharded import (
    PLAIN,
    place_like,
    read_folder,
    read_plain,
    split_checkpoint,
    write_local_rows,
)
from lit_align.compat.lightning import unwrapped


def strategy_of(name: str | Strategy) -> str | Strategy:
    """Return the strategy that ``trainer.strategy`` names: ``fsdp`` is FullySharded, others are Lightning's.

    >>> strategy_of("ddp")
    'ddp'
    """
    return FullySharded() if name == "fsdp" else name


class FullySharded(ModelParallelStrategy):
    """Shards weights, gradients and optimizer states over all processes (PyTorch's FSDP2), on GPUs or CPUs.

    A checkpoint is a folder to which every process writes its rows. It is written atomically, and any number of
    processes, with any strategy, can resume from it.

    Args:
        timeout_minutes: how long a process waits for one that does not answer.
    """

    def __init__(self, timeout_minutes: float = 30.0) -> None:
        timeout = timedelta(minutes=timeout_minutes)
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, timeout=timeout)

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def setup_environment(self) -> None:
        # the base class would distribute the data over nodes only
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def setup(self, trainer: Trainer) -> None:
        """Refuse a module that has not sharded its weights: its processes would train apart without notice."""
        module = self._module
        unsharded = [name for name, weight in module.named_parameters() if not isinstance(weight, DTensor)]
        if unsharded:
            raise ValueError(
                f"trainer.strategy fsdp: {type(module).__name__} does not shard its weights ({unsharded[0]} and "
                f"{len(unsharded) - 1} more are whole); expected a module that does, or trainer.strategy ddp"
            )
        super().setup(trainer)

    # ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _module(self) -> torch.nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module

    @override
    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this process's rows."""
        return dict(self._module.state_dict())

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return this process's rows, numbered as in any other checkpoint."""
        return dict(unwrapped(optimizer).state_dict())

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write beside the target, add checksums, rename; if one process fails, all raise, and older files stay."""
        target = Path(self.broadcast(filepath))
        partial = target.with_name(f".{target.name}.{self.broadcast(os.getpid())}.tmp")
        plain, local_rows = split_checkpoint(checkpoint)
        try:
            counts = self._on_all_processes(lambda: self._write(partial, target, local_rows))
            starts = _first_rows([rows for rows in counts if rows is not None])
            self._on_all_processes(lambda: self._finish(partial, target, {"checkpoint": plain, "starts": starts}))
        finally:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)

    def _write(self, partial: Path, target: Path, local_rows: Mapping[str, Any]) -> dict[str, int]:
        partial.mkdir(parents=True, exist_ok=True)
        check_space(target, bytes_of(dict(local_rows)))
        try:
            return write_local_rows(partial, self.global_rank, local_rows)
        except Exception as error:  # safetensors raises its own errors for a full disk
            raise OSError(f"rank {self.global_rank} could not write its part of {target}: {error}") from error

    def _finish(self, partial: Path, target: Path, plain: Mapping[str, Any]) -> None:
        if not self.is_global_zero:
            return
        torch.save(plain, partial / PLAIN)
        write_manifest(partial)
        put_in_place(partial, target)

    @override
    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what this process needs of a file or folder, after its checksums have been verified."""
        path = Path(self.broadcast(checkpoint_path))
        file = self._on_all_processes(lambda: local_checkpoint(path) if self.is_global_zero else path)[0]
        checkpoint: dict[str, Any] = read_folder(path) if path.is_dir() else read_plain(file, memory_map=True)
        if isinstance(self.checkpoint_io, AtomicCheckpointIO) and self.checkpoint_io.inspect is not None:
            self.checkpoint_io.inspect(checkpoint)
        weights, stored = self._module.state_dict(), checkpoint["state_dict"]
        unknown = sorted(stored.keys() - weights.keys())
        if unknown:
            raise ValueError(f"checkpoint {path} has weights that the model does not have, such as {unknown[0]}")
        checkpoint["state_dict"] = {name: place_like(value, weights[name]) for name, value in stored.items()}
        checkpoint["reference"] = _place_reference(checkpoint.get("reference", {}), self.lightning_module)
        checkpoint["optimizer_states"] = [
            _place_optimizer_state(state, optimizer)
            for state, optimizer in zip(checkpoint["optimizer_states"], self.optimizers, strict=False)
        ]
        return checkpoint

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def _on_all_processes(self, work: Callable[[], Any]) -> list[Any]:
        """Call a function on every process and return all results; an error of one process is raised on all."""
        result, error = None, None
        try:
            result = work()
        except (OSError, ValueError) as raised:
            error = raised
        outcomes: list[Any] = [None] * self.world_size
        dist.all_gather_object(outcomes, (result, error))
        errors = [raised for _, raised in outcomes if raised is not None]
        if errors:
            raise errors[0]
        return [value for value, _ in outcomes]


def _first_rows(counts: list[dict[str, int]]) -> dict[str, list[int]]:
    """Return the first row of each tensor in each process's file, given the number of its rows in each.

    >>> _first_rows([{"a": 2}, {"a": 2}, {"a": 1}])
    {'a': [0, 2, 4]}
    """
    return {name: [sum(rows[name] for rows in counts[:rank]) for rank in range(len(counts))] for name in counts[0]}


def _place_reference(state: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """Place the stored weights of a moving reference like its own; the reference refuses what does not fit it."""
    reference = getattr(module, "reference", None)
    weights = {} if reference is None else reference.state_dict()
    return {name: place_like(value, weights[name]) if name in weights else value for name, value in state.items()}


def _place_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Place every tensor of an optimizer's state that has a weight's shape like that weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def placed(value: Any, weight: torch.Tensor) -> Any:
        return place_like(value, weight) if tuple(getattr(value, "shape", ())) == tuple(weight.shape) else value

    entries_by_weight = {
        number: {key: placed(value, weights[number]) for key, value in entries.items()}
        for number, entries in state["state"].items()
    }
    return {**state, "state": entries_by_weight}
