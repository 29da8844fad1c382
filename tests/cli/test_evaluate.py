from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_align.cli.evaluate import evaluate_parser
from lit_align.cli.evaluation_run import ModelLoader
from lit_align.evaluation.record import read_evaluation
from tests.runner import BASE, SHORT, lit_align, ok

FAST = ("--limit", 4, "--max_new_tokens", 8, "--resamples", 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    data = ("--data.train", "testbed:train", "--data.limit", 8, "--data.batch_size", 4)
    steps = ("--trainer.max_steps", 2, "--model.objective", "dpo", "--model.optimizer.lr", "0.01")
    ok(lit_align("fit", "--run", folder, *BASE, *SHORT, *data, *steps))
    return folder


def evaluate(folder: Path, *words: object) -> str:
    return ok(lit_align("evaluate", "--into", folder, *words)).out


def test_a_run_is_compared_with_a_baseline(run: Path, tmp_path: Path) -> None:
    words = (run, "--prompts", "testbed:test", *FAST, "--baseline", "testbed:policy", "--judge", "testbed")
    sets = ("--pairs", "testbed:test")
    out = evaluate(tmp_path, *words, *sets)
    record = read_evaluation(tmp_path)
    ours, base = record.models
    assert record.baseline == base.name == "testbed-policy"
    assert ours.path == str(run)
    assert ours.settings["reference"] == "testbed:policy"
    assert {"win_rate", "win_rate/length_controlled", "score/gain", "kl", "pairs/accuracy/sum"} <= set(ours.metrics)
    assert ours.metrics["kl"].value > 0
    assert ours.metrics["pairs/accuracy/sum"].n == 4
    assert "testbed-policy (baseline)" in out
    assert "Seed set to" not in out
    assert "GPU available" not in out
    assert len(ours.pairs()) == 4
    before = (tmp_path / "evaluation.json").read_bytes()
    again = evaluate(tmp_path, *words, *sets)
    assert (tmp_path / "evaluation.json").read_bytes() == before
    assert "responses: 4 of 4" not in again


def test_a_checkpoint_is_the_model_that_was_trained(run: Path) -> None:
    """Weights read from a checkpoint are those of the run's newest one, and not those it started from."""
    (checkpoint,) = [path for path in (run / "checkpoints").iterdir() if path.suffix == ".ckpt"][:1]
    load = ModelLoader("float32", "cpu")
    own, start = load(str(checkpoint), "a"), load("testbed:policy", "b")
    weights = [next(iter(loaded.model.parameters())).detach() for loaded in (own, start)]
    assert not weights[0].equal(weights[1])
    assert weights[0].equal(next(iter(load(str(run), "c").model.parameters())))
    assert own.reference == "testbed:policy"
    assert own.identity["step"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to evaluate on"),
        (("--prompts", "x", "--baseline", "y"), "--baseline has no effect without --judge"),
        (("--prompts", "x", "--judge", "llm:m"), "name the other model with --baseline"),
        (("--pairs", "x", "--judge", "testbed"), "--judge has no effect without --prompts"),
        (("--prompts", "x", "--by", "subset"), "--by has no effect without --pairs"),
        (("--prompts", "x", "--names", "a,b"), "--names has 2 names for 1 models"),
        (("--promts", "x"), "--promts: no such option; did you mean --prompts?"),
        (("--prompts", "x", "--seeds", "a"), "expected whole numbers"),
        (("--prompts", "x", "--limit", "0"), "expected a whole number, 1 or more"),
        (("--prompts", "x", "--judge_options", "[]"), "expected a JSON object"),
    ],
)
def test_wrong_options_take_one_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from lit_align.cli.evaluate import main

    with pytest.raises(SystemExit) as ended:
        main(["testbed:policy", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_models_and_prompts_are_named(tmp_path: Path) -> None:
    ended = lit_align("evaluate", "./none", "--prompts", "testbed:test", "--into", tmp_path, *FAST)
    assert ended.code == 2
    assert "./none" in ended.out
    ended = lit_align("evaluate", "testbed:policy", "--prompts", "./none.jsonl", "--into", tmp_path, *FAST)
    assert ended.code == 2
    assert "none.jsonl" in ended.out


def test_help_imports_no_torch() -> None:
    code = "import sys; from lit_align.cli import main\ntry: main(['evaluate', '--help'])\nexcept SystemExit: pass\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert ended.stdout.endswith("False\n")
    assert json.dumps(vars(evaluate_parser().parse_args(["m"])), default=str)
