"""The private parts of PyTorch, and the patch of its modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lit_align.compat.torch import event_file_writer, leave_unscaling, parameters_on_meta
from tests.compat.private_parts import check_private_part

PRIVATE = {
    "torch.nn:Module.register_parameter": ("self, name, param", "parameters_on_meta"),
    "torch.nn:Module._apply": ("self, fn, recurse", "none: references and scorers move their models with it"),
    "torch.distributed.fsdp:FSDPModule._get_fsdp_state": ("self", "initialize_fsdp_root"),
    "torch.distributed.fsdp._fully_shard._fsdp_state:FSDPState._lazy_init": ("self", "initialize_fsdp_root"),
    "torch._subclasses.fake_tensor:FakeTensorMode": (None, "none: lit_align.plan runs models with it"),
    "torch.utils.tensorboard:SummaryWriter._get_file_writer": ("self", "event_file_writer"),
}


@pytest.mark.parametrize("path", PRIVATE)
def test_private_parts(path: str) -> None:
    parameters, used_by = PRIVATE[path]
    check_private_part(path, parameters, f"torch.{used_by}")


def test_parameters_have_no_data_and_buffers_do() -> None:
    with parameters_on_meta():
        norm = nn.BatchNorm1d(3)
    assert norm.weight.is_meta
    assert torch.equal(norm.running_var, torch.ones(3))
    assert not nn.BatchNorm1d(3).weight.is_meta, "the patch is undone"


def test_a_summary_writer_takes_any_event(tmp_path: Path) -> None:
    assert callable(event_file_writer(SummaryWriter(tmp_path)).add_event)


def test_a_fused_optimizer_is_not_taken_to_unscale() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    assert optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
    leave_unscaling(optimizer)
    assert not _optimizer_handles_unscaling(optimizer)
