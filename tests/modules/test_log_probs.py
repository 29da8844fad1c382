"""The module's loss and gradient against a float64 loop that reads one sequence at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel
from torch import Tensor, nn

from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, Loading, LoRA
from lit_align.modules import LitPreference
from lit_align.objectives import SFT, NoRefinement, Objective, averaged_dpo, dpo, kto, sr_dpo, wpo
from lit_align.objectives.pair_seed import training_pair_seed
from lit_align.types import PairBatch, PairLogProbs, PairSeed
from tests.models.logps.test_log_probs import one_by_one

POLICY = "testbed:policy"
pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|is not its reference|does not have many workers)")
OBJECTIVES: dict[str, Objective] = {
    "dpo": dpo(),
    "averaged_dpo": averaged_dpo(),
    "sr_dpo": sr_dpo(),
    "wpo": wpo(),
    "kto": kto(),
    "sft": SFT(),
}


class Watched(Callback):
    """Moves the policy away from its reference before the first step, and keeps batch and gradient of that step."""

    def __init__(self) -> None:
        self.batches: list[PairBatch] = []
        self.gradients: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = copy.deepcopy(pl_module.policy)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)
            for weight in pl_module.parameters():
                if weight.requires_grad:
                    weight.add_(0.02 * torch.randn_like(weight))
        self.policy = copy.deepcopy(pl_module.policy)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        named = dict(pl_module.policy.named_parameters())
        self.gradients = {name: part.grad.clone() for name, part in named.items() if part.grad is not None}


def trained(rows: Path, folder: Path, objective: Objective, **settings: Any) -> tuple[Watched, Trainer, LitPreference]:
    """Run one step on eight pairs."""
    watched = Watched()
    data = PreferenceData(
        train=str(rows),
        tokenizer=POLICY,
        batch_size=8,
        prompted=objective.needs.prompted,
        mismatched=objective.needs.mismatched,
    )
    precision = settings.pop("precision", "32-true")
    module = LitPreference(POLICY, objective, **settings)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    host = Trainer(
        **{**quiet, "logger": False, "enable_checkpointing": False, "use_distributed_sampler": False},
        **{"max_steps": 1, "log_every_n_steps": 1, "callbacks": [watched], "precision": precision},
        default_root_dir=folder,
    )
    host.fit(module, datamodule=data)
    return watched, host, module


def record(policy: nn.Module, reference: nn.Module | None, batch: PairBatch, draw: PairSeed) -> PairLogProbs:
    """Compute everything that an objective may need, one sequence at a time."""
    theirs = None if reference is None else with_adapter_off(reference, batch)
    return replace(one_by_one(policy, batch), reference=theirs, pair_seed=draw)


@torch.no_grad()
def with_adapter_off(model: nn.Module, batch: PairBatch) -> Tensor:
    if not isinstance(model, PeftModel):
        return one_by_one(model, batch).policy
    with model.disable_adapter():
        return one_by_one(model, batch).policy


def by_hand(watched: Watched, objective: Objective) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss and summed gradient in float64."""
    (batch,) = watched.batches
    policy, start = (model.double().eval() for model in (watched.policy, watched.start))
    reference = start if objective.needs.reference else None
    batch = batch if objective.needs.rejected else batch.chosen_side()
    draw = training_pair_seed(batch.index, 0, 0)
    beside = {}
    for name in ("prompted", "mismatched"):
        if getattr(objective.needs, name):
            with torch.no_grad():
                beside[name] = record(policy, reference, getattr(batch, name), draw)
    running = {name: torch.tensor(first, dtype=torch.float64) for name, first in objective.initial_state.items()}
    logps = replace(
        record(policy, reference, batch, draw),
        margin=batch.margin,
        preference_probability=batch.preference_probability,
        state=running,
        **beside,
    )
    loss = (objective(logps).loss * batch.weight).sum()
    policy.zero_grad()
    loss.backward()
    named = dict(policy.named_parameters())
    gradients = {name: part.grad for name, part in named.items() if part.grad is not None}
    return loss.detach() / batch.weight.sum(), gradients


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the distance between two gradients relative to the second."""
    assert ours.keys() == theirs.keys()
    squares = [((ours[name] - theirs[name]).square().sum(), theirs[name].square().sum()) for name in theirs]
    above, below = (torch.stack([one.double() for one in column]).sum() for column in zip(*squares, strict=True))
    assert below > 0
    return float((above / below).sqrt())


@pytest.mark.parametrize(
    ("name", "tokens_at_once"), [*((name, 0) for name in OBJECTIVES), ("sr_dpo", 400), ("kto", 400)]
)
def test_loss_and_gradient_are_those_of_a_loop(rows: Path, tmp_path: Path, name: str, tokens_at_once: int) -> None:
    objective = OBJECTIVES[name]
    how = ForwardPass(tokens_at_once=tokens_at_once, tile_mb=0.01)
    watched, host, module = trained(rows, tmp_path, objective, forward_pass=how)
    assert module.readers.layout(module.policy) in ("shared", "packed")
    loss, gradients = by_hand(watched, objective)
    assert float(host.callback_metrics["train/loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert apart(watched.gradients, gradients) < 1e-5


def test_the_loop_tells_objectives_apart(rows: Path, tmp_path: Path) -> None:
    """The wrong variant: a loop without the offset of Sr-DPO does not agree."""
    watched, host, _ = trained(rows, tmp_path, sr_dpo())
    objective: Any = sr_dpo()
    loss, gradients = by_hand(watched, replace(objective, refinement=NoRefinement()))
    assert abs(float(host.callback_metrics["train/loss"]) - float(loss)) > 1e-3
    assert apart(watched.gradients, gradients) > 1e-2


@pytest.mark.parametrize(("layout", "recompute"), [("shared", False), ("shared", True), ("packed", True)])
def test_an_adapter_and_its_absence(rows: Path, tmp_path: Path, layout: Any, recompute: bool) -> None:
    """The adapter has a gradient, the reference is the model without it, and activations are kept or recomputed."""
    watched, host, module = trained(
        *(rows, tmp_path, dpo()),
        lora=LoRA(rank=4, dropout=0.0),
        loading=Loading(gradient_checkpointing=recompute),
        forward_pass=ForwardPass(layout=layout),
    )
    assert module.readers.layout(module.policy) == layout
    assert all("lora_" in name for name in watched.gradients)
    loss, gradients = by_hand(watched, dpo())
    assert float(host.callback_metrics["train/loss"]) == pytest.approx(float(loss), rel=1e-6)
    assert apart(watched.gradients, gradients) < 1e-5


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_recomputed_activations(rows: Path, tmp_path: Path, layout: Any) -> None:
    how = ForwardPass(layout=layout)
    watched, _, module = trained(rows, tmp_path, dpo(), loading=Loading(gradient_checkpointing=True), forward_pass=how)
    assert module.policy.is_gradient_checkpointing
    assert apart(watched.gradients, by_hand(watched, dpo())[1]) < 1e-5


def test_sixteen_bits_stay_close(rows: Path, tmp_path: Path) -> None:
    """Products in bfloat16 have three digits."""
    watched, host, module = trained(rows, tmp_path, dpo(), precision="bf16-mixed")
    assert module.readers.layout(module.policy) in ("shared", "packed")
    loss, gradients = by_hand(watched, dpo())
    assert {part.dtype for part in watched.gradients.values()} == {torch.float32}
    assert float(host.callback_metrics["train/loss"]) == pytest.approx(float(loss), abs=2e-2)
    assert 1e-6 < apart(watched.gradients, gradients) < 5e-2
