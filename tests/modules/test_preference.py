"""The preference module compared with computations by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, HeadGradientAccumulator, LoRA, SecondModel, response_log_probs
from lit_align.models.logps.plain import packed_mask
from lit_align.modules import LitPreference
from lit_align.modules.step_totals import NonFiniteError, planned_steps
from lit_align.objectives import (
    SFT,
    AnchoredApart,
    Contrast,
    DownSampled,
    Logistic,
    MismatchedMean,
    Objective,
    PreferenceObjective,
    ResponseObjective,
    SelfRefine,
    aot,
    averaged_dpo,
    bco,
    dpo,
    kto,
    sr_dpo,
)
from lit_align.types import Margin, PairBatch, PairLogProbs

POLICY = "testbed:policy"
pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero)")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1.0)


def lit(objective: Objective, lora: LoRA | None = None) -> LitPreference:
    return LitPreference(POLICY, objective, lora=lora, optimizer=sgd)


def loaded(objective: Objective, lora: LoRA | None = None) -> LitPreference:
    module = lit(objective, lora)
    module.configure_model()
    return module


def pairs(rows: Path, batch_size: int = 3, prompted: bool = False) -> PreferenceData:
    return PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=batch_size, prompted=prompted)


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A silent trainer that writes no files."""
    quiet: dict[str, Any] = {
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"},
        **{"enable_model_summary": False, "use_distributed_sampler": False, "default_root_dir": folder},
    }
    return Trainer(callbacks=list(callbacks), **quiet, **settings)


class Watch(Callback):
    """Keeps the training batches and the weights before the first of them."""

    def __init__(self) -> None:
        self.batches: list[PairBatch] = []
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        if not self.before:
            self.before = {name: value.detach().clone() for name, value in pl_module.named_parameters()}


# ── the reference ───────────────────────────────────────────────────────────────────────────────────────────────


def reference_weights(module: LitPreference) -> Iterator[Tensor]:
    assert module.reference is not None
    with module.reference.active() as model:
        yield from model.parameters()


def test_the_reference_is_no_part_of_the_module() -> None:
    """The reference is in no place where a trainer, an optimizer or a checkpoint looks."""
    module = loaded(dpo())
    ours = {id(parameter) for parameter in module.parameters()}
    theirs = {id(parameter) for parameter in reference_weights(module)}
    assert theirs
    assert not ours & theirs
    assert all(name.startswith("policy.") for name in module.state_dict())
    assert not theirs & {id(value) for value in module.state_dict(keep_vars=True).values()}
    optimizer = module.optimizer(module.parameters())
    assert not theirs & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def test_train_does_not_reach_the_reference() -> None:
    module = loaded(dpo())
    assert module.reference is not None
    module.train()
    assert module.policy.training
    with module.reference.active() as model:
        assert not any(part.training for part in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_cast_reaches_the_reference() -> None:
    module = loaded(dpo()).to(torch.float64)
    assert {weight.dtype for weight in reference_weights(module)} == {torch.float64}
    assert {weight.dtype for weight in module.parameters()} == {torch.float64}


def test_with_an_adapter_the_policy_is_its_own_reference() -> None:
    module = loaded(dpo(), LoRA(rank=2))
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert {id(weight) for weight in reference_weights(module)} == {id(weight) for weight in module.parameters()}


def test_no_reference_where_none_is_needed() -> None:
    assert loaded(SFT()).reference is None


def test_configure_model_loads_once() -> None:
    """Lightning may call it again, when a checkpoint's weights are in place already."""
    module = loaded(dpo())
    policy, theirs = module.policy, [id(weight) for weight in reference_weights(module)]
    module.configure_model()
    assert module.policy is policy
    assert [id(weight) for weight in reference_weights(module)] == theirs


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quality_prompt_must_be_in_the_data(rows: Path, tmp_path: Path) -> None:
    module = lit(sr_dpo())
    with pytest.raises(ValueError, match=r"quality prompt: data\.prompted must be true"):
        trainer(tmp_path, max_steps=1).fit(module, datamodule=pairs(rows))
    assert not hasattr(module, "policy"), "refused after the weights were read"
    trainer(tmp_path, max_steps=1).fit(module, datamodule=pairs(rows, prompted=True))


@dataclass(frozen=True)
class NaNInSecond(Contrast):
    """Not a number for the second row of each batch."""

    beta: float = 0.1

    def __call__(self, margin: Margin) -> Margin:
        return torch.where(torch.arange(len(margin)) == 1, margin * torch.nan, Logistic(self.beta)(margin))


def test_a_loss_that_is_not_finite_is_named_by_row(rows: Path, tmp_path: Path) -> None:
    """The weights stay as they were."""
    module, watch = lit(PreferenceObjective(NaNInSecond())), Watch()
    host = trainer(tmp_path, watch, max_steps=2, accumulate_grad_batches=2)
    with pytest.raises(NonFiniteError) as raised:
        host.fit(module, datamodule=pairs(rows))
    bad = [int(batch.index[1]) for batch in watch.batches]
    assert len(bad) == 2
    lines = ", ".join(f"pairs.jsonl:{row + 1}" for row in bad)
    assert f"step 1, rank 0: gradient norm is nan; the loss is not finite of rows {lines}." in str(raised.value)
    assert all(parameter.equal(watch.before[name]) for name, parameter in module.named_parameters())


# ── steps and gradients ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_epochs": 2}, 8),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_epochs": 1, "max_steps": 9}, 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 3, "accumulate_grad_batches": 2}, 4),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 4),
        ({"max_epochs": 1, "limit_train_batches": 100}, 4),
        ({"max_steps": 4, "accumulate_grad_batches": 3}, 4),
    ],
    ids=str,
)
def test_the_steps_announced_are_the_steps_taken(
    rows: Path, tmp_path: Path, settings: dict[str, Any], steps: int
) -> None:
    """Four batches of three to an epoch, the last one short; the schedule ends where the run ends."""
    announced = []

    class Ask(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            announced.append(planned_steps(trainer))

    host = trainer(tmp_path, Ask(), **settings)
    host.fit(LitPreference(POLICY, dpo()), datamodule=pairs(rows))
    assert (announced, host.global_step) == ([steps], steps)


def test_a_run_without_an_end_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set one, the schedule needs an end"):
        trainer(tmp_path, max_epochs=-1).fit(lit(dpo()), datamodule=pairs(rows))


@pytest.mark.parametrize(("objective", "sides"), [(SFT(), 1), (dpo(), 2)], ids=["sft", "dpo"])
def test_only_the_sides_that_are_needed_run(rows: Path, tmp_path: Path, objective: Objective, sides: int) -> None:
    module, watch = loaded(objective), Watch()
    module.readers.how = ForwardPass(layout="padded", tokens_at_once=0)
    ran: list[int] = []
    module.policy.register_forward_pre_hook(
        lambda _, __, inputs: ran.append(inputs["input_ids"].shape[0]), with_kwargs=True
    )
    trainer(tmp_path, watch, max_steps=2).fit(module, datamodule=pairs(rows))
    steps = [sides * len(batch.index) for batch in watch.batches]
    assert ran[-len(steps) :] == steps  # behind the check of the layout


def mean_loss(module: LitPreference, batch: PairBatch, reference: LitPreference) -> Tensor:
    """Compute the plain mean over a batch's pairs, including the forward passes."""
    with torch.no_grad():
        theirs = response_log_probs(reference.policy, batch)
    logps = PairLogProbs(response_log_probs(module.policy, batch), theirs, packed_mask(batch))
    return module.objective(logps).loss.mean()


@pytest.mark.parametrize("objective", [dpo(), averaged_dpo(), SFT()], ids=["dpo", "averaged_dpo", "sft"])
def test_a_step_is_the_gradient_of_the_mean(rows: Path, tmp_path: Path, objective: Objective) -> None:
    """With plain SGD at rate 1 the weights move by the gradient over the pairs of both batches of the window."""
    module, watch = lit(objective), Watch()
    host = trainer(tmp_path, watch, max_epochs=1, limit_train_batches=2, accumulate_grad_batches=2)
    host.fit(module, datamodule=pairs(rows))
    assert host.global_step == 1
    assert math.isclose(module.schedule.factor(0, 1), 0.5)

    fresh, reference = loaded(objective), loaded(objective)
    losses = [mean_loss(fresh, batch, reference) * len(batch.index) for batch in watch.batches]
    (sum(losses, torch.zeros(())) / sum(len(batch.index) for batch in watch.batches)).backward()
    moved = dict(module.named_parameters())
    for name, parameter in fresh.named_parameters():
        assert parameter.grad is not None
        expected = watch.before[name] - 0.5 * parameter.grad
        torch.testing.assert_close(moved[name], expected, rtol=1e-5, atol=1e-6)
    assert max(float(p.grad.abs().max()) for p in fresh.parameters() if p.grad is not None) > 1e-3


@pytest.mark.parametrize("objective", [dpo(), aot()], ids=["dpo", "aot"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_portions_of_a_batch_add_up_to_its_gradient(
    rows: Path, tmp_path: Path, objective: Objective, accumulated: int
) -> None:
    """With chunks of one pair each, gradients of earlier chunks must be kept until the last one."""
    ends = []
    for most in (0, 1):
        module, ran = loaded(objective), []
        module.readers.how = ForwardPass(layout="padded", tokens_at_once=most)
        module.policy.register_forward_pre_hook(
            lambda _, __, inputs, ran=ran: ran.append(len(inputs["input_ids"])), with_kwargs=True
        )
        host = trainer(tmp_path, max_steps=2, accumulate_grad_batches=accumulated)
        host.fit(module, datamodule=pairs(rows))
        assert max(ran[-3:]) == (2 if most else 6)
        ends.append(dict(module.named_parameters()))
    for name, whole in ends[0].items():
        torch.testing.assert_close(ends[1][name], whole, rtol=1e-4, atol=1e-5)


def test_portions_form_one_gradient_of_head_and_embedding(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's gradient is released with the last of three chunks, and the embedding's rows are added up."""
    module, given, by_row = loaded(dpo()), [], []
    module.readers.how = ForwardPass(tokens_at_once=1)
    finish = HeadGradientAccumulator.finish_chunk
    monkeypatch.setattr(HeadGradientAccumulator, "finish_chunk", lambda self: given.append(finish(self)) or given[-1])

    class Watch(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            given.clear()
            by_row.clear()

        def on_train_batch_end(self, *_: Any) -> None:
            assert [gradient.weight is not None for gradient in given] == [False, False, True]
            assert by_row[-3:] == [False, True, True]

    module.policy.get_input_embeddings().register_forward_pre_hook(lambda layer, _: by_row.append(layer.sparse))
    trainer(tmp_path, Watch(), max_steps=2).fit(module, datamodule=pairs(rows))
    assert module.global_step == 2


class BreaksOff(Callback):
    """A callback that ends a run in the middle of an accumulation window."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise InterruptedError


@pytest.mark.parametrize("objective", [dpo(), bco(), kto()], ids=["dpo", "bco", "kto"])
def test_a_run_that_broke_off_leaves_nothing_to_the_next(rows: Path, tmp_path: Path, objective: Objective) -> None:
    """The second fit of a module takes the step that the first fit of a fresh one does."""

    def data() -> PreferenceData:
        return PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=3, mismatched=objective.needs.mismatched)

    broken, fresh = loaded(objective), loaded(objective)
    with pytest.raises(InterruptedError):
        trainer(tmp_path, BreaksOff(), max_steps=1, accumulate_grad_batches=2).fit(broken, datamodule=data())
    for module in (broken, fresh):
        host = trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, log_every_n_steps=1)
        host.fit(module, datamodule=data())
    assert broken.objective_state.values == fresh.objective_state.values
    for ours, theirs in zip(broken.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "objective",
    [
        PreferenceObjective(Logistic(), averaging=DownSampled(), refinement=SelfRefine(0.5)),
        ResponseObjective(AnchoredApart(), averaging=DownSampled(), anchor=MismatchedMean()),
    ],
    ids=["prompted", "mismatched"],
)
def test_what_stands_beside_a_batch_is_drawn_from_as_well(rows: Path, objective: Objective) -> None:
    data = PreferenceData(train=str(rows), tokenizer=POLICY, batch_size=3, prompted=True, mismatched=True)
    data.setup("fit")
    logps = loaded(objective)(next(iter(data.train_dataloader())))
    for beside in filter(None, (logps.prompted, logps.mismatched)):
        assert beside.pair_seed is not None
        assert beside.pair_seed.equal(logps.pair_seed)
    assert objective(logps).loss.isfinite().all()


def test_a_reference_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.reference is set, but the objective needs none"):
        LitPreference(POLICY, SFT(), reference=SecondModel())


class Disturbed(Callback):
    """Change the policy after the reference was made and before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(1.1)


@pytest.mark.fault("A00", "B11")
@pytest.mark.parametrize(("callbacks", "warned"), [((), False), ((Disturbed(),), True)])
def test_a_policy_that_is_not_its_reference_at_the_start(
    rows: Path, tmp_path: Path, callbacks: tuple[Callback, ...], warned: bool, recwarn: pytest.WarningsRecorder
) -> None:
    trainer(tmp_path, *callbacks, max_steps=1).fit(lit(dpo()), datamodule=pairs(rows))
    said = [str(warning.message) for warning in recwarn if "is not its reference" in str(warning.message)]
    assert bool(said) == warned
