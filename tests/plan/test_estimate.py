"""Estimates against numbers by hand, and against the measured peaks of runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch.optim import SGD

from lit_align.data import PreferenceData
from lit_align.models import ForwardPass, Loading, LoRA, Precomputed
from lit_align.models.sampling import Sampling
from lit_align.models.score_model import Value
from lit_align.models.scorer import KnownScore
from lit_align.modules import LitOnline, LitPreference, LitReward, Module
from lit_align.objectives import aot, dpo, simpo, sr_dpo
from lit_align.online import kl_rlhf
from lit_align.plan import Parallelism, estimate, largest_batch, rollout_batch, uniform_batch
from lit_align.testbed.truth import TestbedScore
from lit_align.types import PairBatch
from tests.plan.models import model, pairs

CPU = Parallelism(device="cpu")
RANDOM = Loading(weights="random")
BATCH = uniform_batch(4, prompt=40, response=24)
WHOLE = ForwardPass(tokens_at_once=0)
LAYERS = 3
LAYER = 4 * 384 * 384 + 3 * 384 * 1024
"""Weights of a layer's matrices."""
MEASURE = """
import sys
from pathlib import Path
from lit_align.cli.run import main
main(sys.argv[1:])
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print("peak", int(peak) * 1024)
"""
"""Of the process itself: ``ru_maxrss`` begins with what its parent held."""
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
"""Lets glibc give back what is freed: what is resident is what is alive, which a GPU's allocator says itself."""


def policy(folder: Path, **how: object) -> LitPreference:
    return LitPreference(str(folder), dpo(), loading=RANDOM, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("model") / "model", num_hidden_layers=LAYERS, tie_word_embeddings=False)


@pytest.mark.representative
def test_weights_gradients_and_states_are_exact(folder: Path) -> None:
    """Two embeddings, the layers with two norms each, and the final norm; four bytes each, and eight of AdamW."""
    weights = 2 * 32000 * 384 + LAYERS * (LAYER + 2 * 384) + 384
    found = estimate(policy(folder), BATCH, CPU)
    assert found.parameters == found.trained == weights
    step = found.phases["step"]
    assert step.parameters == step.gradients == step.frozen == 4 * weights
    assert step.optimizer == 8 * weights
    assert found.tokens == 4 * 2 * 64


@pytest.mark.long
def test_chunks_keep_fewer_activations_and_need_the_same_operations(folder: Path) -> None:
    plain = estimate(policy(folder), BATCH, CPU)
    found = estimate(policy(folder, forward_pass=ForwardPass(tokens_at_once=128)), BATCH, CPU)
    assert found.phases["forward"].activations < plain.phases["forward"].activations / 2
    assert found.operations == pytest.approx(plain.operations, rel=0.01)


def test_operations_are_three_passes_of_the_policy_and_one_of_the_reference(folder: Path) -> None:
    """Two operations for each weight and token of the layers, and of the head for each scored token; twice backward.

    With shared prompts a pair has 40 + 2 x 24 tokens; attention adds a little.
    """
    layers = LAYERS * LAYER
    tokens, scored = 4 * (40 + 2 * 24), 4 * 2 * 24
    by_hand = 2 * 4 * (layers * tokens + 32000 * 384 * scored)
    found = estimate(policy(folder), BATCH, CPU)
    assert 0.95 * by_hand < found.operations < 1.1 * by_hand


@pytest.mark.long
def test_what_a_setting_changes(folder: Path) -> None:
    plain = estimate(policy(folder), BATCH, CPU)
    before = plain.phases["forward"]
    adapter = estimate(policy(folder, lora=LoRA(rank=4)), BATCH, CPU)
    assert adapter.memory.frozen == 0
    assert adapter.phases["step"].gradients == 4 * adapter.trained < plain.phases["step"].gradients / 50
    alone = estimate(LitPreference(str(folder), simpo(), loading=RANDOM), BATCH, CPU).phases["forward"]
    assert alone.frozen == 0
    tile = 4 * 32000 * 4 * 2 * 24  # of the reference's logits, which is kept
    assert 0 <= before.activations - alone.activations <= 1.01 * tile
    loading = replace(RANDOM, gradient_checkpointing=True)
    recomputed = estimate(LitPreference(str(folder), dpo(), loading=loading), BATCH, CPU)
    assert recomputed.phases["forward"].activations < before.activations / 2
    assert recomputed.operations > plain.operations
    doubled = estimate(policy(folder, forward_pass=WHOLE), uniform_batch(8, 40, 24), CPU).phases["forward"]
    assert doubled.activations == pytest.approx(2 * before.activations, rel=0.05)


@pytest.mark.long
def test_gradients_exist_after_the_first_backward_pass(folder: Path) -> None:
    """Gradients exist before a forward pass only if the step has an earlier micro-batch."""
    weights = 4 * (2 * 32000 * 384 + LAYERS * (LAYER + 2 * 384) + 384)
    one = estimate(policy(folder), BATCH, CPU).phases
    assert [one[phase].gradients for phase in ("forward", "step")] == [0, weights]
    assert 0 < one["backward"].gradients < weights
    two = estimate(policy(folder), BATCH, replace(CPU, accumulate=2)).phases
    assert [two[phase].gradients for phase in ("forward", "backward", "step")] == [weights] * 3


def test_a_precomputed_reference_is_released_before_the_first_step(folder: Path) -> None:
    found = estimate(policy(folder, reference=Precomputed()), BATCH, CPU)
    reading = found.phases["reference"]
    assert (reading.frozen, reading.optimizer) == (reading.parameters, 0)
    assert {found.phases[phase].frozen for phase in ("forward", "backward", "step")} == {0}
    live = estimate(policy(folder), BATCH, CPU)
    assert found.operations == pytest.approx(live.operations * 3 / 4, rel=0.01)
    assert found.memory.total <= live.memory.total - live.memory.frozen


@pytest.mark.long
def test_batch_level_objectives_read_each_micro_batch_twice(folder: Path) -> None:
    """One more forward pass of the policy where a step has several micro-batches, without gradient."""
    one, two = (
        estimate(LitPreference(str(folder), aot(), loading=RANDOM), BATCH, replace(CPU, accumulate=accumulate))
        for accumulate in (1, 2)
    )
    layers = LAYERS * LAYER
    reading = 2 * (layers * 4 * (40 + 2 * 24) + 32000 * 384 * 4 * 2 * 24)
    assert two.operations / 2 - one.operations == pytest.approx(reading, rel=0.05)


@pytest.mark.long
def test_ddp_and_fsdp(folder: Path) -> None:
    plain = estimate(policy(folder), BATCH, CPU).phases["step"]
    ddp = estimate(policy(folder), BATCH, replace(CPU, processes=8)).memory
    assert ddp.communication == plain.gradients
    cut = estimate(policy(folder), BATCH, replace(CPU, processes=8, sharded=True)).memory
    for name in ("parameters", "optimizer", "frozen"):
        assert getattr(cut, name) == getattr(plain, name) // 8
    assert cut.total < ddp.total


def test_sharded_weights_are_gathered_in_bfloat16(folder: Path) -> None:
    """Embedding and head are whole in two bytes a weight, and two of the layers; a layer's gradients in four."""
    layer = LAYER + 2 * 384
    outside = 2 * 32000 * 384 + 384
    cut = replace(CPU, processes=8, sharded=True, precision="bf16-mixed")
    found = estimate(policy(folder), BATCH, cut)
    assert found.phases["forward"].communication == 2 * (outside + 2 * layer) + 4 * layer
    assert found.phases["step"].parameters == 4 * (outside + LAYERS * layer) // 8
    assert found.phases["step"].optimizer == 8 * (outside + LAYERS * layer) // 8


@pytest.mark.long
def test_a_prompted_pair_costs_operations_but_keeps_no_activations(folder: Path) -> None:
    batch = uniform_batch(4, 40, 24, quality_prompt=10)
    plain = estimate(policy(folder), BATCH, CPU)
    refined = estimate(LitPreference(str(folder), sr_dpo(), loading=RANDOM), batch, CPU)
    assert refined.operations > 1.4 * plain.operations
    tile = 4 * 32000 * 4 * 2 * 24
    more = refined.phases["forward"].activations - plain.phases["forward"].activations
    assert 0 <= more <= 2.02 * tile


def measured(run: Path, *words: object) -> int:
    """Return the peak resident bytes of a fit of three steps in a fresh process."""
    command = ("fit", "--run", run, "--samples.count", 0, "--export.form", "none", *words)
    more = ("--trainer.accelerator", "cpu", "--trainer.max_steps", 3, "--trainer.enable_progress_bar", "false")
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, (*command, *more))],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LIT_ALIGN_CACHE": str(run / "cache"), **GIVES_BACK},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return int(ended.stdout.rsplit("peak", 1)[1])


def batch_of(data: Path, pairs_at_once: int) -> PairBatch:
    found = PreferenceData(train=str(data), tokenizer="testbed:policy", batch_size=pairs_at_once)
    found.splits["train"] = found.prepare_split("train")
    return largest_batch(found)


@dataclass(frozen=True)
class Run:
    """The configuration of a run, and the arguments of its estimate."""

    words: tuple[object, ...]
    module: Callable[[str], Module]
    parallelism: Parallelism = CPU
    at_once: int = 8


def aligned(*words: object, parallelism: Parallelism = CPU, **how: Any) -> Run:
    settings = {"loading": RANDOM, "forward_pass": WHOLE, **how}
    fixed = (
        "--model.objective",
        "dpo",
        "--model.forward_pass.tokens_at_once",
        settings["forward_pass"].tokens_at_once,
    )
    words = tuple("null" if word is None else word for word in (*fixed, *words))
    return Run(words, lambda name: LitPreference(name, dpo(), **settings), parallelism)


def drawing(name: str) -> LitOnline:
    settings: dict[str, Any] = {"responses": 2, "micro_batch": 8, "minibatches": 2, "sampling": Sampling(40)}
    value = Value(loading=RANDOM)
    return LitOnline(name, kl_rlhf(), KnownScore(TestbedScore()), value=value, loading=RANDOM, **settings)


RUNS = {
    "plain": aligned(),
    "chunks": aligned(forward_pass=ForwardPass()),
    "bf16-mixed": aligned("--trainer.precision", "bf16-mixed", parallelism=replace(CPU, precision="bf16-mixed")),
    "recomputed": aligned(
        *("--model.loading.gradient_checkpointing", "true"), loading=replace(RANDOM, gradient_checkpointing=True)
    ),
    "adapter": aligned("--model.lora.rank", 8, lora=LoRA(rank=8)),
    "accumulated, SGD": aligned(
        *(
            "--trainer.accumulate_grad_batches",
            2,
            "--model.optimizer",
            "torch.optim.SGD",
            "--model.optimizer.lr",
            1e-6,
        ),
        parallelism=replace(CPU, accumulate=2),
        optimizer=lambda weights: SGD(weights, lr=1e-6),
    ),
    "precomputed": aligned("--model.reference", "Precomputed", reference=Precomputed()),
    "reward": Run(("--task", "reward"), lambda name: LitReward(name, loading=RANDOM), at_once=4),
    "online": Run(
        (
            *("--task", "online", "--model.objective", "kl_rlhf", "--model.value.loading.weights", "random"),
            *("--model.score", "KnownScore", "--model.score.score", "TestbedScore"),
            *("--model.responses", 2, "--model.micro_batch", 8, "--model.minibatches", 2),
            *("--model.sampling.max_new_tokens", 40),
        ),
        drawing,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_what_the_plan_says(tmp_path: Path, name: str) -> None:
    """The difference to the same run with the testbed's tiny policy is estimated within a fifth."""
    folder = model(tmp_path / "model", tie_word_embeddings=False)
    run, data = RUNS[name], pairs(tmp_path / "pairs.jsonl")
    more = ("--data.train", data, "--data.batch_size", run.at_once, "--data.tokenizer", "testbed:policy", *run.words)
    tiny = measured(tmp_path / "tiny", "--model.policy", "testbed:policy", "--model.loading.weights", "random", *more)
    large = measured(tmp_path / "large", "--model.policy", folder, "--model.loading.weights", "random", *more)
    batch = batch_of(data, run.at_once)
    if name == "online":
        batch = rollout_batch(batch, responses=2, tokens=40)
    planned = [
        estimate(run.module(where), batch, run.parallelism).memory.total for where in ("testbed:policy", str(folder))
    ]
    assert large - tiny == pytest.approx(planned[1] - planned[0], rel=0.2)
