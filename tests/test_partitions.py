"""Every objective trains the same weights and reports the same numbers, however pairs are split over processes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lit_align.modules import Constant, LitPreference
from lit_align.modules.step_totals import total_over_ranks
from lit_align.objectives import Objective, wpo
from lit_align.types import PairBatch, PairSeed
from tests.conftest import tiny_llama
from tests.runner import distance, forked, in_processes, ok
from tests.test_presets_train import NAMES, data_for, equal_models, loaded, objective

TOKENS = "testbed:policy"
RATE = 0.05
SIDES = (("chosen", 3), ("rejected", 2))


@dataclass(frozen=True)
class World:
    """The inputs of a run.

    Args:
        policy: folder of a random two-layer model, or a name.
        rows: eleven pairs.
    """

    policy: str
    rows: Path


@dataclass(frozen=True)
class Layout:
    """How the four pairs of a step are split; eleven pairs make two full steps and one of three."""

    processes: int
    batch_size: int
    accumulate: int


FIRST = Layout(1, 4, 1)
LAYOUTS = {
    "accumulated": Layout(1, 1, 4),
    "half accumulated": Layout(1, 2, 2),
    "two processes": Layout(2, 2, 1),
    "two processes, accumulated": Layout(2, 1, 2),
    "four processes": Layout(4, 1, 1),
}
"""In two processes the last step has two pairs and one pair; in four, one process has only a copy of a pair."""
FEW = ("kto", "aot", "sampo", "bco", "rpo", "sr_dpo")
"""With a mean or an order over all pairs, sampled tokens, state, a token-weighted term, a second kind of prompt."""


class Kept(Logger):
    """Keep the reported numbers, without throughput."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, float]] = []

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.lines.append({"step": float(step or 0)} | {k: v for k, v in metrics.items() if "throughput" not in k})


@dataclass(frozen=True)
class Result:
    """The weights and the reported numbers of a run."""

    weights: dict[str, Tensor]
    lines: list[dict[str, float]]


@dataclass(frozen=True)
class Worlds:
    """Small inputs for most objectives, and likely responses for the objective that weighs pairs by likelihood."""

    small: World
    likely: World

    def of(self, made: Objective) -> World:
        return self.likely if made == wpo() else self.small


def trained(module: LitPreference, rows: Path, layout: Layout) -> Result:
    """Train for one epoch with SGD, and validate on the same rows."""
    made = module.objective
    kept = Kept()
    alone = layout.processes == 1
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=layout.processes,
        strategy="auto" if alone else DDPStrategy(timeout=timedelta(seconds=120)),
        accumulate_grad_batches=layout.accumulate,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=kept,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=rows.parent,
    )
    trainer.fit(module, datamodule=data_for(made, rows, layout.batch_size))
    return Result({name: weight.detach().clone() for name, weight in module.policy.named_parameters()}, kept.lines)


def sgd(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=RATE)


def module(worlds: Worlds, made: Objective, kind: type[LitPreference] = LitPreference) -> LitPreference:
    return kind(worlds.of(made).policy, made, optimizer=sgd, schedule=Constant())


@pytest.fixture(scope="module")
def worlds(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """The eleven pairs, shortened and whole, each with a margin for the objectives that require one."""
    folder = tmp_path_factory.mktemp("partitions")
    tiny_llama(vocabulary=loaded(TOKENS).config.vocab_size).save_pretrained(folder / "policy")
    lines = [{**json.loads(line), "margin": 0.25} for line in rows.read_text("utf-8").splitlines()]
    short = [shortened(line, place) for place, line in enumerate(lines)]
    for name, given in (("short", short), ("long", lines)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in given), "utf-8")
    return Worlds(World(str(folder / "policy"), folder / "short.jsonl"), World(TOKENS, folder / "long.jsonl"))


def shortened(row: dict[str, Any], place: int) -> dict[str, Any]:
    """Shorten the responses of a row to a few words, to lengths that differ."""
    words = {side: " ".join(row[side].split()[: 3 + (place * step) % 7]) for side, step in SIDES}
    return {**row, "prompt": " ".join(row["prompt"].split()[:8]), **words}


Kind = Callable[[Worlds, str], LitPreference]


def plain(worlds: Worlds, name: str) -> LitPreference:
    return module(worlds, objective(name))


def of_all(
    names: Sequence[str], worlds: Worlds, layout: Layout, folder: Path, kind: Kind = plain
) -> dict[str, Result]:
    """Train each objective in one layout, in processes that are started once."""

    def work(rank: int) -> None:
        results = {name: vars(trained(kind(worlds, name), worlds.of(objective(name)).rows, layout)) for name in names}
        if rank == 0:
            torch.save(results, folder / "results.pt")

    alone: list[Callable[[], None]] = [lambda: work(0)]
    for ended in forked(alone if layout.processes == 1 else in_processes(layout.processes, work)):
        ok(ended)
    return results_in(folder)


def results_in(folder: Path) -> dict[str, Result]:
    """Return what runs of several objectives came to, by objective."""
    return {name: Result(**parts) for name, parts in torch.load(folder / "results.pt", weights_only=True).items()}


@pytest.fixture(scope="module")
def whole(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Every objective in one process with four pairs to a batch, trained once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "partitions-whole"
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return results_in(folder)
        folder.mkdir()
        return of_all(NAMES, worlds, FIRST, folder)


def differences(one: Result, other: Result) -> list[str]:
    """Describe where two runs differ: weights by 1e-6, numbers in five digits, ratios of small numbers in four."""
    problems = []
    apart = distance(one.weights, other.weights)
    if not apart < 1e-6:
        problems.append(f"weights differ by {apart:.1e}")
    for ours, theirs in zip(one.lines, other.lines, strict=True):
        assert ours.keys() == theirs.keys()
        near = {name: 1e-4 if "correlation" in name else 3e-6 for name in ours}
        wrong = [
            name
            for name, value in ours.items()
            if theirs[name] != pytest.approx(value, rel=2e-5, abs=near[name], nan_ok=True)
        ]
        problems += [f"step {ours['step']:.0f}: {name} is {theirs[name]}, was {ours[name]}" for name in wrong]
    return problems


@pytest.mark.partition("every objective: weights, losses and metrics for 1, 2 and 4 processes, and accumulated")
@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("two processes", FEW),
        *(pytest.param(layout, NAMES, marks=pytest.mark.long) for layout in LAYOUTS),
    ],
    ids=lambda value: value if isinstance(value, str) else "all" if value is NAMES else "few",
)
def test_every_objective_trains_the_same(
    whole: dict[str, Result], worlds: Worlds, tmp_path: Path, layout: str, names: Sequence[str]
) -> None:
    results = of_all(names, worlds, LAYOUTS[layout], tmp_path)
    problems = {name: differences(whole[name], results[name]) for name in names}
    assert not {name: lines for name, lines in problems.items() if lines}


def test_every_objective_moves_the_weights_far_enough_to_tell(whole: dict[str, Result], worlds: Worlds) -> None:
    """They move by a hundred times the tolerance between layouts; three steps and a validation are reported."""
    for name in NAMES:
        start = dict(loaded(worlds.of(objective(name)).policy).named_parameters())
        assert distance(start, whole[name].weights) > 1e-4, name
        steps = [line["step"] for line in whole[name].lines if "train/loss" in line]
        assert steps == [1, 2, 3]
        assert any("val/loss" in line for line in whole[name].lines)


def test_the_first_loss_is_that_of_equal_models(whole: dict[str, Result], worlds: Worlds) -> None:
    for name in NAMES:
        made = objective(name)
        world = worlds.of(made)
        losses = [line["train/loss"] for line in whole[name].lines if "train/loss" in line]
        assert all(map(math.isfinite, losses)), name
        assert len(set(losses)) == 3, name
        logps = equal_models(made, world.rows, world.policy, FIRST.batch_size)
        assert losses[0] == pytest.approx(made(logps).loss.mean().item(), rel=1e-5), name


# ── what would go wrong ─────────────────────────────────────────────────────────────────────────────────────────────


class OwnMean(LitPreference):
    """Divide by the pairs of this process, and leave the mean over processes to DDP."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        own = self.step_totals.weight
        everyone = total_over_ranks(own, self.trainer.strategy)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad *= float(everyone / (own * self.trainer.world_size))
        super().on_before_optimizer_step(optimizer)


class OwnSeed(LitPreference):
    """Sample tokens by process instead of by pair."""

    def _pair_seed(self, batch: PairBatch) -> PairSeed:
        return super()._pair_seed(batch) + self.global_rank


class CountsCopies(LitPreference):
    """Count the copies that pad a process's batch as pairs."""

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        super().validation_step(replace(batch, weight=torch.ones_like(batch.weight)), batch_idx)


@pytest.mark.parametrize(
    ("kind", "name", "layout", "seen"),
    [
        (OwnMean, "dpo", "two processes", "step 3: train/grad_norm"),
        pytest.param(OwnSeed, "sampo", "two processes", "weights differ", marks=pytest.mark.long),
        pytest.param(CountsCopies, "dpo", "four processes", "val/loss", marks=pytest.mark.long),
    ],
)
def test_a_module_that_forgets_the_others_is_found_out(
    whole: dict[str, Result],
    worlds: Worlds,
    tmp_path: Path,
    kind: type[LitPreference],
    name: str,
    layout: str,
    seen: str,
) -> None:
    def wrong(where: Worlds, what: str) -> LitPreference:
        return module(where, objective(what), kind)

    results = of_all([name], worlds, LAYOUTS[layout], tmp_path, wrong)
    assert any(seen in line for line in differences(whole[name], results[name]))
