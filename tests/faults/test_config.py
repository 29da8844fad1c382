"""Invalid settings are refused with exit code 2 and one message, before any model is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_align import testbed
from tests.faults.cases import cases
from tests.runner import BASE, QUIET, SHORT, Ended, first_loss, lit_align, ok, weights

IPO = ("--model.objective", "ipo")
DPO_OF = "{class_path: PreferenceObjective, init_args: {contrast: {class_path: %s, init_args: {%s}}}}"
MEAN_OF = (
    "{class_path: PreferenceObjective, init_args: {contrast: {class_path: Logistic}, averaging: "
    "{class_path: LengthPower, init_args: {power: 7}}}}"
)
SUM_OF = "{class_path: WeightedSum, init_args: {terms: [{name: one, objective: {class_path: dpo}, %s}]}}"
BOUNDS = "expected a finite number in"
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "C01": (("--model.objective.beta", "0"), f"Logistic.beta is 0.0; {BOUNDS} (0, 1e6]"),
    "C01b": (("--model.objective.beta", "-0.1"), f"Logistic.beta is -0.1; {BOUNDS} (0, 1e6]"),
    "C01c": (("--model.objective.beta", ".nan"), f"Logistic.beta is nan; {BOUNDS} (0, 1e6]"),
    "C01d inf": (("--model.objective.beta", ".inf"), f"Logistic.beta is inf; {BOUNDS} (0, 1e6]"),
    "C01d": (("--model.objective.beta", "1e30"), f"Logistic.beta is 1e+30; {BOUNDS} (0, 1e6]"),
    "C01e": ((*IPO, "--model.objective.beta", "0"), f"Square.beta is 0.0; {BOUNDS} (0, 1e6]"),
    "C02": (("--model.objective", DPO_OF % ("Robust", "label_smoothing: 0.5")), f"0.5; {BOUNDS} [0, 0.5)"),
    "C02b": (("--model.objective", DPO_OF % ("Robust", "label_smoothing: 2")), f"2.0; {BOUNDS} [0, 0.5)"),
    "C03b": (("--model.optimizer.lr", ".nan"), "Invalid learning rate"),
    "C03b inf": (("--model.optimizer.lr", "1e400"), "model.optimizer.lr is inf; expected a finite number"),
    "C03c": (("--model.optimizer.lr", "-1"), "Invalid learning rate"),
    "C04": (("--model.objective", "dppo"), "model.objective is 'dppo'; did you mean dpo or "),
    "C04b": (("--model.objective", SUM_OF % "weights: [1, 2]"), "model.objective.terms.weights: Term has no such"),
    "C05": (("--data.batch_size", "0"), "data.batch_size is 0; expected 1 or more"),
    "C06": (("--model.objective", "ld_dpo", "--model.objective.weight", "3"), f"weight is 3.0; {BOUNDS} [0, 1]"),
    "C06 nested": (("--model.objective", MEAN_OF), f"LengthPower.power is 7.0; {BOUNDS} [0, 1]"),
    "C06 adapter": (("--model.lora", "{rank: -3}"), "error: LoRA: rank is -3; expected 1 or more\n"),
    "C06b": (("--model.objective.label_smoothing", "0.1"), "model.objective.label_smoothing: dpo has no such option"),
    "C06b reference": (
        ("--model.objective", "simpo", "--model.reference", "SecondModel"),
        "model.reference is set, but the objective needs none",
    ),
    "C07": (("--data.truncate_prompt", "middle"), "truncate_prompt is 'middle'; expected one of 'left', 'right'"),
    "C08": (("--data.batch_siz", "4"), "did you mean data.batch_size?"),
    "C08 nested": (
        ("--model.objective", DPO_OF % ("Hinge", "bet: 1")),
        "model.objective.contrast.bet: Hinge has no such option; did you mean beta?",
    ),
    "C08b": (("--model.objective.beta", "many"), "model.objective.beta is 'many'; expected a number"),
    "C08b nested": (
        ("--model.objective", DPO_OF % ("Hinge", "beta: many")),
        "model.objective.contrast.beta is 'many'; expected a number",
    ),
    "C12": (("--trainer.precision", "16-mixed"), "trainer.precision 16-mixed: expected bf16-mixed"),
    "C12 true": (("--trainer.precision", "16-true"), "trainer.precision 16-true: expected bf16-mixed"),
    "C13": (("--data.padding_free", "true"), "data.padding_free: no such key"),
    "C13 layout": (("--model.forward_pass.layout", "free"), "layout is 'free'; expected one of"),
    "A20": (("--data.max_length", "0"), "data.max_length is 0; expected 4 or more"),
    "A20b": (("--data.max_length", "-5"), "data.max_length is -5; expected 4 or more"),
    "B18": (("--model.policy", "./out/model"), "folder not found: ./out/model"),
    "B18c": (("--model.policy", "tests"), "is missing in tests"),
    "F04": (("--task", "reward", "--model.num_labels", "2"), "num_labels"),
    "D06c": (("--ckpt_path", "nowhere.ckpt"), "checkpoint not found: nowhere.ckpt"),
}


def fit(run: Path, rows: Path, *words: object) -> Ended:
    base = ("fit", "--run", run, *QUIET, "--data.train", rows, "--trainer.max_steps", 1)
    usual = ("--model.policy", "testbed:policy", "--model.objective", "dpo", "--samples.count", 0)
    return lit_align(*base, *(usual[:2] if "--task" in words else usual), *words)


def refused(ended: Ended, reason: str) -> None:
    assert ended.code == 2, ended.out
    assert reason in ended.out
    assert "Traceback" not in ended.out
    assert "reference  " not in ended.out  # what is said when the models are read


@pytest.mark.parametrize("fault", cases(REFUSED))
def test_a_setting_that_cannot_be_meant_is_refused(fault: str, rows: Path, tmp_path: Path) -> None:
    words, reason = REFUSED[fault]
    ended = fit(tmp_path / "run", rows, *words)
    refused(ended, reason)
    assert "Union" not in ended.out
    assert "<class" not in ended.out


@pytest.mark.fault("C03")
def test_c03_a_learning_rate_that_destroys_the_weights_stops_the_run(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("--trainer.max_steps", 30, "--checkpoints.every_n_steps", 1, "--model.optimizer", "torch.optim.SGD")
    ended = fit(run, rows, *more, "--model.optimizer.lr", "1e30")
    assert ended.code == 1, ended.out
    assert "gradient norm is nan" in ended.out
    assert not (run / "policy").exists()
    assert all(value.isfinite().all() for value in weights(run).values())


@pytest.mark.fault("C03")
def test_c03_what_the_last_step_destroys_is_neither_kept_nor_exported(rows: Path, tmp_path: Path) -> None:
    """No later gradient would reveal the damage."""
    run = tmp_path / "run"
    more = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e30")
    ended = fit(run, rows, *more, "--model.optimizer.weight_decay", "1e30")
    assert ended.code == 1, ended.out
    assert "step 1, rank 0: weight policy." in ended.out
    assert "is not finite after the optimizer step" in ended.out
    assert not (run / "policy").exists()
    assert not list((run / "checkpoints").iterdir())


SPOILS = """
import torch
from lightning.pytorch import Callback

class Spoils(Callback):
    def on_train_batch_end(self, trainer, pl_module, *rest):
        if trainer.global_step == 2:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(torch.nan)
"""


@pytest.mark.fault("C03")
@pytest.mark.parametrize("steps", [2, 3])
def test_c03_a_checkpoint_of_good_weights_is_not_replaced_by_one_of_bad_ones(
    rows: Path, tmp_path: Path, steps: int
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "spoils.py").write_text(SPOILS)
    run = tmp_path / "run"
    more = ("--extend", tmp_path / "parts", "--trainer.callbacks+=spoils.Spoils", "--checkpoints.every_n_steps", 1)
    ended = fit(run, rows, *more, "--trainer.max_steps", steps)
    assert ended.code == 1, ended.out
    assert "is not finite after the optimizer step" in ended.out
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
    assert all(value.isfinite().all() for value in weights(run).values())


@pytest.mark.fault("C09")
@pytest.mark.parametrize("split", ["validation", "train"])
def test_c09_the_set_whose_rows_cannot_be_used_is_named(rows: Path, tmp_path: Path, split: str) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"question": "Where?", "good": "Here."}) + "\n")
    refused(fit(tmp_path / "run", rows, f"--data.{split}", other), f"error: data.{split}: {other}: 1 of 1 rows")
    refused(fit(tmp_path / "run", rows, f"--data.{split}", "no.jsonl"), f"data.{split}: data file not found: no.jsonl")
    command = ("test", "--run", tmp_path / "run", *QUIET, *BASE[:2], *IPO, "--data.test", other)
    refused(lit_align(*command), f"error: data.test: {other}: 1 of 1 rows")


@pytest.mark.fault("A26", "C10")
@pytest.mark.parametrize("split", ["validation", "train"])
def test_c10_a_set_without_rows_is_no_missing_set(rows: Path, tmp_path: Path, split: str) -> None:
    """Of no kind: an empty file as YAML is null, and null is no validation at all."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(fit(tmp_path / "run", rows, f"--data.{split}", empty), f"error: data.{split}: {empty}: no rows")


@pytest.mark.fault("C09")
def test_a_set_of_one_pair_is_too_small_for_an_objective_that_compares_rows(rows: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(rows.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    ended = fit(tmp_path / "run", rows, "--model.objective", "kto", "--data.validation", one)
    refused(ended, "data.validation: the objective compares with the responses of other rows, but the split has only")


@pytest.mark.parametrize("kind", ["json", "csv", "jinja"])
def test_what_a_data_file_holds_is_never_read_as_settings(rows: Path, tmp_path: Path, kind: str) -> None:
    """As YAML, the first two would name another source, and the third is a text that names the template's file."""
    path = tmp_path / f"data.{kind}"
    path.write_text({"json": json.dumps([{"path": str(rows)}]), "csv": f"- {rows}\n", "jinja": str(tmp_path)}[kind])
    key = "--data.chat_template" if kind == "jinja" else "--data.train"
    ended = fit(tmp_path / "run", rows, key, path)
    refused(ended, f"{path}: a chat template must" if kind == "jinja" else f"data.train: {path}: ")


def test_the_same_command_with_settings_that_can_be_meant_runs(rows: Path, tmp_path: Path) -> None:
    """The same command without the fault is accepted, so each refusal above has the stated reason."""
    run = tmp_path / "run"
    ok(fit(run, rows, *SHORT, "--data.validation", testbed.path("validation.jsonl"), "--trainer.limit_val_batches", 1))
    assert first_loss(run) == pytest.approx(0.693147, abs=1e-6)
