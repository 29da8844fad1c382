"""Whole runs from the command line on the testbed: equal layouts, resuming, and the files in the folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runner import BASE, QUIET, SHORT, distance, distributed, lit_align, metrics, ok, weights


def words(run: Path, rows: Path, *more: object, objective: str = "dpo") -> Sequence[object]:
    return ("fit", "--run", run, *BASE, *SHORT, "--model.objective", objective, "--data.train", rows, *more)


LAYOUTS = {
    "8 x 1": (1, 8, 1),
    "4 x 2": (1, 4, 2),
    "1 x 8": (1, 1, 8),
    "2 processes 4 x 1": (2, 4, 1),
    "2 processes 2 x 2": (2, 2, 2),
}


CROWD = """
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch.nn import functional as F

from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome

FIRST = MappingProxyType({"shift": 0.0})


@dataclass(frozen=True)
class Crowd(Objective):
    '''A margin that leans on everybody's, on mismatched responses, on drawn tokens and on the steps before.'''

    beta: float = 0.1

    needs = Needs(reference=True, rejected=True, mismatched=True, collision=True, pair_seed=True, batch_level=True)
    initial_state = FIRST

    def advance_state(self, running, observed):
        return {"shift": 0.5 * running["shift"] + 0.5 * observed["shift"]}

    def __call__(self, logps):
        kept = (torch.arange(logps.mask.shape[-1]) + logps.pair_seed[:, None]) % 2 == 0
        ratio = torch.where(logps.mask & kept[:, None], logps.policy - logps.reference, 0.0).sum(-1)
        margin = ratio[:, 0] - ratio[:, 1]
        apart = (logps.mismatched.policy - logps.mismatched.reference).sum((1, 2)).mean()
        certain = logps.collision.sum((1, 2)).exp()
        loss = F.softplus(-self.beta * (margin + margin.mean() - apart - logps.state["shift"])) * (1 + certain)
        rewards = (self.beta * ratio).detach()
        return Outcome(loss, rewards, margin=margin.detach(), observed={"shift": margin.detach() + 1.0})


class Alone(Crowd):
    needs = replace(Crowd.needs, batch_level=False)
"""


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """A folder with an objective that has every need that an objective can have."""
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "crowd.py").write_text(CROWD, "utf-8")
    return folder


@pytest.mark.fault("D30", "D31b")
@pytest.mark.partition(
    "8 x 1, 4 x 2, 1 x 8, 2 processes 4 x 1 and 2 x 2, with short last windows: weights and metrics"
)
@pytest.mark.long  # tests/test_partitions.py trains every objective
@pytest.mark.parametrize("objective", ["dpo", "averaged_dpo", "sr_dpo", "crowd.Crowd"])
@pytest.mark.fault("E01", "E02", "LE1", "L07")
def test_any_layout_trains_the_same_weights(rows: Path, tmp_path: Path, crowd: Path, objective: str) -> None:
    """Three epochs of eleven pairs with eight pairs per step: each epoch ends in a short step. SGD hides no error."""
    found = {}
    for name, (processes, batch_size, accumulate) in LAYOUTS.items():
        run = tmp_path / name.replace(" ", "_")
        command = words(
            *(run, rows, "--data.batch_size", batch_size, "--trainer.accumulate_grad_batches", accumulate),
            *("--trainer.max_epochs", 3, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.05"),
            *("--data.validation", rows, "--trainer.gradient_clip_val", "1.0", "--extend", crowd),
            objective=objective,
        )
        for ended in distributed(processes, *command) if processes > 1 else [lit_align(*command)]:
            ok(ended)
        found[name] = (weights(run), metrics(run))
    first_weights, first_metrics = found.pop("8 x 1")
    assert len([line for line in first_metrics if "train/loss" in line]) == 6
    for name, (theirs, reported) in found.items():
        assert distance(first_weights, theirs) < 1e-6, name
        for ours, other in zip(first_metrics, reported, strict=True):
            assert other == pytest.approx(ours, rel=1e-4, abs=1e-5), name


def test_judged_per_micro_batch_the_layout_would_matter(rows: Path, tmp_path: Path, crowd: Path) -> None:
    """A wrong variant of the objective fails the comparison."""
    found = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        run = tmp_path / str(batch_size)
        more = ("--data.batch_size", batch_size, "--trainer.accumulate_grad_batches", accumulate)
        ok(lit_align(*words(run, rows, *more, "--extend", crowd, "--trainer.max_steps", 2, objective="crowd.Alone")))
        found.append(weights(run))
    assert distance(*found) > 1e-4


@pytest.mark.resume("numbers that an objective carries, a reference that moves, draws, windows that end in the middle")
@pytest.mark.resume("shuffled epochs read by workers, validations between and at the ends of epochs")
@pytest.mark.fault("D01", "L02", "L02b")
def test_resume_is_exact_with_all_that_is_carried(rows: Path, tmp_path: Path, crowd: Path) -> None:
    """Objective state, a moving reference, draws by the step, incomplete windows, workers, validations in an epoch."""
    more = (
        *("--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2, "--data.num_workers", 2),
        *("--data.validation", rows, "--trainer.val_check_interval", 2),
        *("--model.reference", "MovingReference", "--model.reference.every", 2, "--model.reference.mixing", 0.3),
        *("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1, "--trainer.max_steps", 7, "--extend", crowd),
    )
    whole = tmp_path / "whole"
    ended = ok(lit_align(*words(whole, rows, *more, objective="crowd.Crowd")))
    assert "a copy of the policy that takes 0.3 of it every 2 steps" in ended.out
    assert "2404.09656" in ended.out
    lines = metrics(whole)
    assert len({line["train/running/shift"] for line in lines if "train/loss" in line}) == 7
    assert not [key for line in lines for key in line if "displacement" in key]
    for step in (3, 5):
        resumed = tmp_path / f"from_{step}"
        go_on = (*more, "--ckpt_path", whole / "checkpoints" / f"step={step}.ckpt")
        ok(lit_align(*words(resumed, rows, *go_on, objective="crowd.Crowd")))
        assert distance(weights(whole), weights(resumed)) == 0.0
        assert metrics(resumed) == [line for line in lines if line["step"] > step]


def test_unpaired_rows_train_and_are_predicted(rows: Path, tmp_path: Path) -> None:
    unpaired, run = tmp_path / "unpaired.jsonl", tmp_path / "run"
    given = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    sides = [("chosen", True), ("rejected", False)]
    lines = [
        {"prompt": row["prompt"], "completion": row[side], "label": label}
        for place, row in enumerate(given)
        for side, label in sides[place % 2 : place % 2 + 1]
    ]
    unpaired.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    more = ("--data.validation", unpaired, "--data.batch_size", 3, "--trainer.max_epochs", 2)
    ok(lit_align(*words(run, unpaired, *more, objective="kto")))
    reported = [line for line in metrics(run) if "train/loss" in line]
    assert all(math.isfinite(value) for line in metrics(run) for value in line.values())
    assert reported[0]["train/loss"] == pytest.approx(0.5, abs=1e-3)
    assert {"train/rewards/chosen", "train/rewards/rejected"} <= {key for line in reported for key in line}
    assert not [key for line in metrics(run) for key in line if "accuracies" in key or "lengths/gap" in key]
    command = ("--run", run, *BASE, *QUIET, "--model.objective", "kto", "--data.predict", unpaired)
    ok(lit_align("predict", *command, "--ckpt_path", "last", "--data.batch_size", 4))
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [list(line["rewards"]) for line in found] == [[sides[place % 2][0]] for place in range(11)]


def test_a_beta_is_reported_at_the_scale_of_sums(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--model.objective.beta", "0.01", "--trainer.max_steps", 1)
    ended = ok(lit_align(*words(run, rows, *more, objective="averaged_dpo")))
    (line,) = metrics(run)
    assert 0 < line["train/beta/effective"] < 0.002
    assert f"0.01: {line['train/beta/effective']:.3g} at the scale of sums" in ended.out


@pytest.mark.long
@pytest.mark.parametrize(("workers", "steps"), [(0, range(1, 7)), (2, (5,))], ids=["alone", "workers"])
@pytest.mark.resume("from every step: shuffling, accumulation, workers, validations between and at the ends of epochs")
@pytest.mark.fault("D01", "L02", "L02b")
def test_resume_is_exact_from_every_step(rows: Path, tmp_path: Path, workers: int, steps: Sequence[int]) -> None:
    """Shuffled epochs with a short last step, accumulation, validations between and at the ends of epochs."""
    more = (
        *("--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2, "--data.num_workers", workers),
        *("--data.validation", rows, "--trainer.val_check_interval", 2, "--trainer.log_every_n_steps", 2),
        *("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1, "--trainer.max_steps", 7),
    )
    whole = tmp_path / "whole"
    ok(lit_align(*words(whole, rows, *more)))
    for step in steps:
        resumed = tmp_path / f"from_{step}"
        ok(lit_align(*words(resumed, rows, *more, "--ckpt_path", whole / "checkpoints" / f"step={step}.ckpt")))
        assert distance(weights(whole), weights(resumed)) == 0.0
        assert metrics(resumed) == [line for line in metrics(whole) if line["step"] > step]


@pytest.mark.long
@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.resume("again and again, from the end of every epoch or from every second step")
@pytest.mark.fault("D01", "L02", "L02b")
def test_a_resumed_run_is_resumed_again(rows: Path, tmp_path: Path, validated: bool) -> None:
    """Three steps to an epoch; each run resumes from a checkpoint of the one before it."""
    more = (
        *("--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2, "--trainer.log_every_n_steps", 1),
        *(("--data.validation", rows) if validated else ()),
        *("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1, "--trainer.max_steps", 8),
    )
    whole = tmp_path / "whole"
    ok(lit_align(*words(whole, rows, *more)))
    for apart in (2, 3):
        before = whole
        for step in range(apart, 8, apart):
            resumed = tmp_path / f"every_{apart}_from_{step}"
            ok(lit_align(*words(resumed, rows, *more, "--ckpt_path", before / "checkpoints" / f"step={step}.ckpt")))
            assert metrics(resumed) == [line for line in metrics(whole) if line["step"] > step]
            assert distance(weights(whole), weights(resumed)) == 0.0
            before = resumed


@pytest.mark.resume("a run that had ended, with more steps than before")
def test_a_run_that_ended_inside_an_epoch_goes_on_in_it(rows: Path, tmp_path: Path) -> None:
    """Resuming with more steps equals a run that never ended."""
    more = ("--data.batch_size", 3, "--trainer.log_every_n_steps", 1, "--model.schedule", "Constant")
    for run, steps in (("parts", 2), ("parts", 6), ("whole", 6)):
        again = ("--ckpt_path", "last") if steps == 6 and run == "parts" else ()
        ok(lit_align(*words(tmp_path / run, rows, *more, "--trainer.max_steps", steps, *again)))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert distance(weights(tmp_path / "parts"), weights(tmp_path / "whole")) == 0.0


@pytest.mark.long
@pytest.mark.resume("batches by a token budget, made by workers")
def test_resume_is_exact_with_a_token_budget(rows: Path, tmp_path: Path) -> None:
    """Batches with different numbers of pairs, accumulated, over two epochs."""
    more = (
        *("--data.tokens_per_batch", 500, "--trainer.accumulate_grad_batches", 2, "--data.num_workers", 2),
        *("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1, "--trainer.max_epochs", 2),
    )
    whole = tmp_path / "whole"
    ok(lit_align(*words(whole, rows, *more)))
    steps = sorted(int(path.stem.removeprefix("step=")) for path in (whole / "checkpoints").glob("step=*.ckpt"))
    assert len(steps) >= 4
    for step in steps[:-1:2]:
        resumed = tmp_path / f"from_{step}"
        ok(lit_align(*words(resumed, rows, *more, "--ckpt_path", whole / "checkpoints" / f"step={step}.ckpt")))
        assert distance(weights(whole), weights(resumed)) == 0.0
        assert metrics(resumed) == [line for line in metrics(whole) if line["step"] > step]


@pytest.mark.partition("batches by a token budget in one process or two: loss, tokens, gradient of an epoch")
def test_a_token_budget_trains_every_pair_once_in_two_processes(rows: Path, tmp_path: Path) -> None:
    """At learning rate 0 mean loss and tokens of an epoch do not depend on the number of processes."""
    found = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        more = ("--data.tokens_per_batch", 500, "--trainer.max_epochs", 1, "--model.optimizer.lr", "0")
        command = (
            *words(run, rows, *more),
            "--trainer.accumulate_grad_batches",
            100,
            "--trainer.log_every_n_steps",
            1,
        )
        for ended in distributed(processes, *command) if processes > 1 else [lit_align(*command)]:
            ok(ended)
        (line,) = metrics(run)
        found.append((line["train/tokens_seen"], line["train/loss"], line["train/grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.representative
def test_a_run_leaves_what_it_says(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = (
        *("fit", "--run", run, *BASE, *QUIET, "--model.objective", "sr_dpo", "--data.train", rows),
        *("--data.batch_size", 2, "--data.validation", rows, "--trainer.max_steps", 4),
        *("--trainer.val_check_interval", 2, "--samples.count", 3, "--samples.score", "TestbedScore"),
        *("--samples.sampling.max_new_tokens", 24),
    )
    ended = ok(lit_align(*command))
    assert "2405.21040" in ended.out
    assert "overridden" not in ended.out, "Lightning advises on hooks of ours"
    assert "SelfRefine" in ended.out
    assert "after 4 steps" in ended.out
    assert ended.out.count("layout     shared: a prompt is read once for both responses, without padding") == 1
    names = {path.name for path in run.iterdir()}
    files = {"config.yaml", "data.json", "environment.json", "metrics.jsonl", "samples.jsonl"}
    (events,) = run.glob("events.out.tfevents.*")
    assert names == files | {"checkpoints", "figures", "policy", events.name}
    reported = {key for line in metrics(run) for key in line}
    assert {"train/margin/prompted", "train/margin/offset", "val/rewards/accuracies"} <= reported
    assert {"train/quality_prompt/accuracy", "val/margin/prompted_accuracy"} <= reported
    assert "quality prompt: on" in ended.out
    assert {"samples/policy/score", "samples/reference/eos_rate", "samples/policy/length/p50"} <= reported
    policy = AutoModelForCausalLM.from_pretrained(run / "policy")
    trained = weights(run)
    assert all(trained[f"policy.{name}"].equal(value) for name, value in policy.state_dict().items())
    assert AutoTokenizer.from_pretrained(run / "policy").eos_token_id is not None
    card = (run / "policy" / "README.md").read_text("utf-8")
    assert "SelfRefine(strength=" in card
    assert "@" in card
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    assert {line["step"] for line in samples} == {0, 2, 4}
    assert all(line["policy"] == line["reference"] for line in samples if line["step"] == 0)


def test_the_saved_configuration_runs_again_in_the_same_folder(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 2, objective="sr_ipo")))
    first = metrics(run)
    ok(lit_align("fit", "--config", run / "config.yaml"))
    assert metrics(run) == first
    assert metrics(run / "previous" / "1") == first


def test_a_checkpoint_does_not_change_the_configuration(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 1)))
    ended = lit_align(
        *words(run, rows, "--trainer.max_steps", 2, "--ckpt_path", run / "checkpoints" / "last.ckpt"),
        *("--model.policy", "./nowhere", "--data.tokenizer", "testbed:policy"),
    )
    assert ended.code != 0
    assert "model folder not found: ./nowhere" in ended.out


@pytest.mark.representative
def test_lora_trains_keeps_and_exports_the_adapter(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--model.lora.rank", 4, "--trainer.max_steps", 2, "--export.form", "adapter")
    ok(lit_align(*words(run, rows, *more)))
    assert all("lora_" in name for name in weights(run))
    assert (run / "policy" / "adapter_model.safetensors").exists()
    ok(lit_align(*words(run, rows, *more, "--trainer.max_steps", 4, "--ckpt_path", "last")))
    ok(lit_align(*words(run, rows, *more, "--export.form", "merged")))
    assert AutoModelForCausalLM.from_pretrained(run / "policy").num_parameters() > 0


def test_another_adapter_is_not_taken_for_this_one(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 1)))
    base = ("--run", run, *BASE, *QUIET, "--model.objective", "dpo", "--ckpt_path", "last")
    ended = lit_align("validate", *base, "--data.validation", rows, "--model.lora.rank", 4)
    assert ended.code == 2
    assert "model.lora.rank: was None, is 4" in ended.out


@pytest.mark.fault("D06c")
def test_an_evaluation_stands_at_the_checkpoint_s_step(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 3)))
    base = ("--run", run, *BASE, *QUIET, "--model.objective", "dpo", "--data.validation", rows)
    table = ok(lit_align("validate", *base, "--ckpt_path", "last")).out
    for name in ("lengths/longer_wins", "lengths/chosen_is/shorter", "margin/signs_differ", "rewards/accuracies"):
        low, high = map(float, re.search(rf"{name} +│ \S+ +│ (\S+) to (\S+)", table).groups())  # type: ignore[union-attr]
        assert 0 <= low < high <= 1, "a share's interval"
    assert "…" not in table
    assert metrics(run)[-1]["step"] == 3
    assert "val/loss" in metrics(run)[-1]
    ended = lit_align("validate", *base, "--run", tmp_path / "other", "--ckpt_path", "last")
    assert ended.code == 2
    assert "no checkpoint in" in ended.out


@pytest.mark.fault("D02")
def test_an_objective_may_change_on_resume_if_the_user_says_so(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 1)))
    changed = words(run, rows, "--trainer.max_steps", 2, "--ckpt_path", "last", objective="mpo")
    ended = lit_align(*changed)
    assert ended.code == 2
    assert "was 'lit_align.objectives.dpo', is 'lit_align.objectives.mpo'" in ended.out
    ok(lit_align(*changed, "--on_changed_settings", "warn"))


def test_a_short_run_reports_its_steps(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for every in (10, 0):
        ok(lit_align(*words(run, rows, "--trainer.max_steps", 2, "--trainer.log_every_n_steps", every)))
        assert [line["step"] for line in metrics(run) if "train/loss" in line] == [2]


def test_predict_writes_a_line_per_pair(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, "--trainer.max_steps", 2)))
    command = ("--run", run, *BASE, *QUIET, "--model.objective", "dpo", "--data.predict", rows)
    ok(lit_align("predict", *command, "--ckpt_path", "last", "--data.batch_size", 3))
    one = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"] for line in one] == list(range(11))
    assert all(
        line["rewards"]["chosen"] == pytest.approx(0.1 * line["log_ratio_sum"]["chosen"], rel=1e-4, abs=1e-6)
        for line in one
    )
    for ended in distributed(2, "predict", *command, "--ckpt_path", "last", "--data.batch_size", 3):
        ok(ended)
    two = [json.loads(line) for line in (run / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"] for line in two] == list(range(11))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)


@pytest.mark.fault("B15")
@pytest.mark.fault("L01")
@pytest.mark.representative
def test_a_loss_that_is_not_finite_stops_before_the_step(rows: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "broken.py").write_text(BROKEN)
    run = tmp_path / "run"
    more = ("--extend", parts, "--trainer.max_steps", 3, "--checkpoints.every_n_steps", 1, "--data.batch_size", 4)
    more = (*more, "--trainer.callbacks+=broken.Breaks")
    contrast = "{class_path: PreferenceObjective, init_args: {contrast: {class_path: broken.Broken}}}"
    ended = lit_align(*words(run, rows, *more, objective=contrast))
    assert ended.code == 1
    assert "step 2, rank 0: gradient norm is nan; the loss is not finite of rows pairs.jsonl:" in ended.out
    assert "Traceback" not in ended.out
    assert all(value.isfinite().all() for value in weights(run).values())


BROKEN = """
from dataclasses import dataclass
from lightning.pytorch import Callback
from lit_align.objectives import Contrast

broken = []

class Breaks(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        broken[:] = [True] * (batch_idx == 1)

@dataclass(frozen=True)
class Broken(Contrast):
    beta: float = 0.1

    def __call__(self, margin):
        return margin * (float("nan") if broken else 1.0)
"""
