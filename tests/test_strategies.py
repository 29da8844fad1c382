"""Every strategy trains the same policy, and resumes from checkpoints of every other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.cli import consolidate
from lit_align.data import PreferenceData
from lit_align.modules import LitReward
from lit_align.strategies import FullySharded
from tests.runner import BASE, QUIET, Ended, distance, distributed, forked, in_processes, lit_align, metrics, ok


def words(run: Path, rows: Path, *more: object, objective: str = "averaged_dpo") -> Sequence[object]:
    return (
        *("fit", "--run", run, *BASE, *QUIET, "--samples.count", 0, "--model.objective", objective),
        *("--data.train", rows, "--data.validation", rows, "--model.optimizer", "torch.optim.SGD"),
        *("--model.optimizer.lr", "0.05", "--trainer.gradient_clip_val", "1.0", "--trainer.max_steps", 4, *more),
    )


FSDP = ("--trainer.strategy", "fsdp")


def exported(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    return found


@pytest.mark.partition("a policy whose weights are cut in two: weights and metrics")
@pytest.mark.parametrize(
    "objective",
    ["averaged_dpo", pytest.param("sr_dpo", marks=pytest.mark.long)],
)
def test_cut_weights_train_the_same_policy(rows: Path, tmp_path: Path, objective: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ok(lit_align(*words(whole, rows, "--data.batch_size", 4, objective=objective)))
    for ended in distributed(2, *words(cut, rows, "--data.batch_size", 2, *FSDP, objective=objective)):
        ok(ended)
    assert distance(exported(whole), exported(cut)) < 1e-5
    for ours, theirs in zip(metrics(whole), metrics(cut), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5)


WAYS = {
    "one process": (1, ()),
    "ddp": (2, ()),
    "fsdp": (2, FSDP),
    "fsdp on four": (4, FSDP),
}


def run_as(way: str, *command: object) -> None:
    """Run a command with four pairs per step, in any number of processes."""
    processes, strategy = WAYS[way]
    more = (*command, "--data.batch_size", 4 // processes, *strategy)
    for ended in distributed(processes, *more) if processes > 1 else [lit_align(*more)]:
        ok(ended)


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("fsdp", "fsdp"),
        ("fsdp", "one process"),
        ("one process", "fsdp"),
        ("fsdp", "ddp"),
        ("ddp", "fsdp"),
        ("fsdp", "fsdp on four"),
        ("fsdp on four", "fsdp"),
    ],
)
@pytest.mark.resume("from any strategy to any other, on other numbers of processes")
def test_a_checkpoint_can_be_gone_on_from_by_any(rows: Path, tmp_path: Path, first: str, second: str) -> None:
    """From the end of an epoch, three steps with Adam's state, a moving reference and a validation, then three."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    adam = ("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-4", "--trainer.max_steps", 6)
    stops = ("--checkpoints.every_n_steps", 3, "--checkpoints.keep", -1)
    stops += ("--model.reference", "MovingReference", "--model.reference.every", 2)
    run_as("one process", *words(whole, rows, *adam, *stops))
    run_as(first, *words(run, rows, *adam, *stops))
    checkpoint = run / "checkpoints" / "step=3.ckpt"
    assert checkpoint.is_dir() == first.startswith("fsdp")
    before = metrics(run)
    run_as(second, *words(run, rows, *adam, *stops, "--ckpt_path", checkpoint, "--on_changed_settings", "warn"))
    assert distance(exported(whole), exported(run)) < 1e-5
    for ours, theirs in zip(before, metrics(run), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--model.lora.rank", 4), marks=pytest.mark.long),
        pytest.param(
            ("--model.loading.gradient_checkpointing", "true", "--trainer.accumulate_grad_batches", 2),
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("--model.reference", "SecondModel", "--model.reference.path", "testbed:policy"), marks=pytest.mark.long
        ),
        pytest.param(("--model.reference", "MovingReference", "--model.reference.every", 2), marks=pytest.mark.long),
    ],
    ids=["adapter", "recomputed and accumulated", "another reference", "a reference that moves"],
)
@pytest.mark.partition("weights cut in two, with an adapter, accumulated, with other references")
def test_what_one_process_can_do_two_can(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ok(lit_align(*words(whole, rows, "--data.batch_size", 2, *more)))
    for ended in distributed(2, *words(cut, rows, "--data.batch_size", 1, *more, *FSDP)):
        ok(ended)
    assert distance(exported(whole), exported(cut)) < 1e-5
    for ours, theirs in zip(metrics(whole), metrics(cut), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ("--model.lora.rank", 4)], ids=["all weights", "adapter"])
def test_sixteen_bits(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    """Products in bfloat16 differ in their third digit, after four steps as much as between two chunk sizes."""
    found = {}
    for way in ("one process", "fsdp"):
        run = tmp_path / way.replace(" ", "_")
        run_as(way, *words(run, rows, "--trainer.precision", "bf16-mixed", *more))
        found[way] = metrics(run)
        assert {weight.dtype for weight in exported(run).values()} == {torch.float32}
    for ours, theirs in zip(found["one process"], found["fsdp"], strict=True):
        assert theirs.get("train/loss", 0) == pytest.approx(ours.get("train/loss", 0), abs=1e-2)


class Whole(LitReward):
    """A module that builds its model as if there were one process."""

    def configure_model(self) -> None:
        self.model = self.build_trained_model()


def test_a_module_that_does_not_cut_its_weights_is_refused(rows: Path, tmp_path: Path) -> None:
    def fit(rank: int) -> None:
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy=FullySharded(), max_steps=1, default_root_dir=tmp_path, **quiet
        )
        trainer.fit(Whole("testbed:policy"), PreferenceData(train=str(rows), tokenizer="testbed:policy"))

    for ended in forked(in_processes(2, fit)):
        assert ended.code == 1
        assert "trainer.strategy fsdp: Whole does not shard its weights (model.model" in ended.out


@pytest.mark.parametrize(
    "more", [pytest.param((), marks=pytest.mark.long), ("--model.lora.rank", 4)], ids=["all weights", "adapter"]
)
def test_a_checkpoint_in_parts_becomes_one_model(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    run = tmp_path / "run"
    run_as("fsdp", *words(run, rows, *more))
    ok(consolidated(run, "--to", tmp_path / "model"))
    assert distance(exported(run), AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()) < 1e-6
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id is not None
    again = consolidated(run / "checkpoints" / "step=4.ckpt", "--to", tmp_path / "model")
    assert again.code == 2
    assert "exists and is not an empty folder; nothing is overwritten" in again.out


def consolidated(*command: object) -> Ended:
    def work() -> None:
        consolidate.main([str(word) for word in command])

    return forked([work])[0]


# ── a reference whose log-probabilities are kept ────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.partition("the cache of a precomputed reference: filled with cut weights, read with whole ones")
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--model.lora.rank", 4),
        ("--model.reference.path", "testbed:policy"),
    ],
    ids=["the policy's start", "adapter off", "another model"],
)
def test_kept_log_probs_are_the_same_however_weights_lie(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    """Sharded weights fill the cache; unsharded weights read it and train the same; sharded weights read it, too."""
    kept = ("--model.reference", "Precomputed", "--model.reference.cache", tmp_path / "cache", *more)
    cut = (*words(tmp_path / "cut", rows, *kept), "--data.batch_size", 2, *FSDP)
    filled = [ok(ended) for ended in distributed(2, *cut)]
    assert "reference  22 rows computed, 0 found" in filled[0].out
    trained = exported(tmp_path / "cut")
    ended = ok(lit_align(*words(tmp_path / "whole", rows, *kept), "--data.batch_size", 4))
    assert "reference  0 rows computed, 22 found" in ended.out
    assert distance(trained, exported(tmp_path / "whole")) < 1e-5
    found = [ok(ended) for ended in distributed(2, *cut)]
    assert "reference  0 rows computed, 22 found" in found[0].out
    assert distance(trained, exported(tmp_path / "cut")) < 1e-6
