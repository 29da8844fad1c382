"""Reward models and on-policy runs with sharded weights equal those of one process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.runner import QUIET, Ended, distance, distributed, lit_align, metrics, ok
from tests.test_strategies import FSDP, consolidated, exported

pytestmark = pytest.mark.long
"""Two processes for 20 seconds and more each; tests/test_strategies.py shows the same for pairs in every gate."""

KEPT = ("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1)
PLAIN = (*QUIET, "--samples.count", 0, "--trainer.log_every_n_steps", 1, "--model.policy", "testbed:policy")
LORA = ("--model.lora.rank", 4)


def data(rows: Path, batch_size: int) -> tuple[object, ...]:
    return ("--data.train", rows, "--data.validation", rows, "--data.batch_size", batch_size)


def sgd(rate: float) -> tuple[object, ...]:
    return ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", rate)


def all_ok(ended: list[Ended]) -> None:
    for one in ended:
        ok(one)


# ── reward ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def reward(run: Path, *more: object) -> tuple[object, ...]:
    return ("fit", "--task", "reward", "--run", run, *PLAIN, *sgd(0.05), "--trainer.max_steps", 4, *more)


def scored(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    return found


def same_numbers(one: Path, other: Path, absolute: float = 1e-5) -> None:
    assert metrics(one)
    for ours, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=absolute)


@pytest.mark.partition("a reward model whose weights are cut in two, with and without adapter")
@pytest.mark.parametrize("more", [(), LORA], ids=["all weights", "adapter"])
def test_a_cut_reward_model_is_that_of_one_process(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    clip = ("--trainer.gradient_clip_val", 1.0, *more)
    ok(lit_align(*reward(whole, *data(rows, 4), *clip)))
    all_ok(distributed(2, *reward(cut, *data(rows, 2), *clip, *FSDP)))
    assert distance(scored(whole / "reward_model"), scored(cut / "reward_model")) < 1e-5
    same_numbers(whole, cut)
    ok(consolidated(cut, "--to", tmp_path / "model"))
    assert distance(scored(cut / "reward_model"), scored(tmp_path / "model")) < 1e-6


def go_on(base: tuple[object, ...], run: Path, step: int) -> tuple[object, ...]:
    saved = run / "checkpoints" / f"step={step}.ckpt"
    return (*base, "--ckpt_path", saved, "--on_changed_settings", "warn")


def as_layout(processes: int, *command: object) -> None:
    """Run a command with four rows per batch: unsharded in one process, sharded in several."""
    if processes == 1:
        ok(lit_align(*command, "--data.batch_size", 4))
    else:
        all_ok(distributed(processes, *command, "--data.batch_size", 4 // processes, *FSDP))


@pytest.mark.resume("a reward model, from cut to cut, from cut to whole, from whole to cut")
@pytest.mark.parametrize(
    ("first", "second", "more"), [(2, 2, LORA), (2, 1, ()), (1, 2, ())], ids=["cut, adapter", "cut whole", "whole cut"]
)
def test_a_reward_model_can_be_gone_on_with(
    rows: Path, tmp_path: Path, first: int, second: int, more: tuple[object, ...]
) -> None:
    """Resume from the middle of the second epoch, with Adam's state."""
    adam = ("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-4", *more, *KEPT, *data(rows, 4))
    whole, run = tmp_path / "whole", tmp_path / "run"
    as_layout(1, *reward(whole, *adam, "--trainer.max_steps", 6))
    as_layout(first, *reward(run, *adam, "--trainer.max_steps", 6))
    before = metrics(run)
    as_layout(second, *go_on(reward(run, *adam, "--trainer.max_steps", 6), run, 4))
    assert distance(scored(whole / "reward_model"), scored(run / "reward_model")) < 1e-5
    for ours, theirs in zip(before, metrics(run), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-4)


# ── on-policy ───────────────────────────────────────────────────────────────────────────────────────────────────────

RLOO = (
    *("--model.objective", "kl_rlhf", "--model.objective.advantage", "LeaveOneOut"),
    *("--model.objective.weighting", "ResponseSum", "--model.objective.surrogate", "Reinforce"),
    *("--model.responses", 2, "--model.gradient_clip", 1.0),
)
PPO = (
    *("--model.objective", "kl_rlhf", "--model.epochs", 2, "--model.minibatches", 2),
    *("--model.value.learning_rate", 0.01),
)
REMAX = ("--model.objective", "kl_rlhf", "--model.objective.advantage", "GreedyBaseline")
KINDS = {
    "RLOO": RLOO,
    "PPO": PPO,
    "ReMax with an adapter": (*REMAX, *LORA),
    "RLOO, moving reference": (*RLOO, "--model.reference", "MovingReference", "--model.reference.every", 2),
}


@pytest.fixture(scope="module")
def judge(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that was trained on a few pairs."""
    run = tmp_path_factory.mktemp("judge") / "run"
    ok(lit_align(*reward(run, *data(rows, 4), "--trainer.max_steps", 6)))
    return run / "reward_model"


def online(run: Path, judge: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--task", "online", "--run", run, *PLAIN, *sgd(0.02), "--data.train", rows, "--data.validation"),
        *(rows, "--model.sampling.max_new_tokens", 6, "--model.micro_batch", 3, "--trainer.max_epochs", 1),
        *("--model.score", "RewardModel", "--model.score.path", judge, "--model.score.batch_size", 3, *more),
    )


@pytest.mark.partition("on-policy runs whose weights are cut in two: samples, metrics, weights")
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_cut_policy_draws_and_learns_what_a_whole_one_does(
    rows: Path, tmp_path: Path, judge: Path, kind: str
) -> None:
    """Of eleven prompts the last batch has two in one process and one in the other, so their passes differ."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    as_layout(1, *online(whole, judge, rows, *KINDS[kind]))
    as_layout(2, *online(cut, judge, rows, *KINDS[kind]))
    assert distance(exported(whole), exported(cut)) < 1e-5
    same_numbers(whole, cut, absolute=1e-4)


def test_sixteen_bits_with_an_adapter_and_samples(rows: Path, tmp_path: Path, judge: Path) -> None:
    """Generating with the adapter off does not change the dtype of the gradients."""
    sampled = ("--samples.count", 2, "--samples.sampling.max_new_tokens", 4, "--trainer.precision", "bf16-mixed")
    as_layout(2, *online(tmp_path, judge, rows, *REMAX, *LORA, *sampled))
    assert {weight.dtype for weight in exported(tmp_path).values()} == {torch.float32}
    assert all(math.isfinite(value) for line in metrics(tmp_path) for value in line.values())


@pytest.mark.resume("an on-policy run with a value model, from cut to cut and from cut to whole")
@pytest.mark.parametrize("second", [2, pytest.param(1, marks=pytest.mark.long)], ids=["cut", "whole"])
def test_an_on_policy_run_can_be_gone_on_with(rows: Path, tmp_path: Path, judge: Path, second: int) -> None:
    """Resume after the second of three rollouts, with Adam's state of policy and value model."""
    adam = ("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "1e-5", "--model.value.learning_rate")
    more = (*PPO, *adam, "1e-4", *KEPT)
    run = tmp_path / "run"
    as_layout(2, *online(run, judge, rows, *more))
    before, weights = metrics(run), exported(run)
    as_layout(second, *go_on(online(run, judge, rows, *more), run, 8))
    assert distance(weights, exported(run)) < 1e-5
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in before]
    for ours, theirs in zip(before, metrics(run), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-3)


@pytest.mark.partition("texts that a cut policy draws for samples and predictions")
def test_a_cut_policy_with_an_adapter_writes_the_same_texts(rows: Path, tmp_path: Path, judge: Path) -> None:
    texts = {}
    for processes in (1, 2):
        run = tmp_path / str(processes)
        base = online(run, judge, rows, *RLOO, *LORA, "--samples.count", 3, "--trainer.num_sanity_val_steps", 0)
        as_layout(processes, *base, "--samples.sampling.max_new_tokens", 6)
        texts[processes] = (run / "samples.jsonl").read_text("utf-8")
        assert len(texts[processes].splitlines()) >= 6
    assert texts[1] == texts[2]
