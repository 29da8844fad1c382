"""The layout does not change results, for any number of processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_align.models import ForwardPass, LogProbReader, LoRA, choose_layout
from lit_align.models.logps.check import Choice
from lit_align.models.logps.reader import ModelReader
from lit_align.modules import log_probs as readers
from lit_align.modules.log_probs import LogProbReaders
from lit_align.types import PairBatch
from tests.models.architectures import CONFIGS, build, named, telling_batch
from tests.runner import BASE, QUIET, distance, distributed, lit_align, metrics, ok

LAYOUT, TOKENS = "--model.forward_pass.layout", "--model.forward_pass.tokens_at_once"
Run = Callable[[str], Path]


def words(run: Path, rows: Path, objective: str, *more: object) -> Sequence[object]:
    """Three steps of four pairs, with SGD, whose updates are proportional to the gradient."""
    return (
        *("fit", "--run", run, *BASE, *QUIET, "--samples.count", 0, "--model.objective", objective),
        *("--data.train", rows, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.05"),
        *("--trainer.gradient_clip_val", "1.0", "--trainer.max_steps", 3, *more),
    )


def exported(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    return found


@pytest.fixture(scope="module")
def in_padded_rows(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process with whole batches in padded rows, computed once per objective."""
    folder = tmp_path_factory.mktemp("padded")

    def run(objective: str) -> Path:
        if not (folder / objective).exists():
            more = ("--data.batch_size", 4, LAYOUT, "padded")
            ok(lit_align(*words(folder / objective, rows, objective, *more)))
        return folder / objective

    return run


def assert_same(ours: Path, theirs: Path) -> None:
    assert distance(exported(ours), exported(theirs)) < 1e-6
    for one, other in zip(metrics(ours), metrics(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=3e-5)


def test_one_check_for_each_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy with other weights is read as the model is; one with an adapter, or of another shape, is looked at."""
    checked: list[torch.nn.Module] = []

    def choose(source: ModelReader, batch: PairBatch) -> Choice:
        checked.append(source.model)
        return choose_layout(source, batch)

    monkeypatch.setattr(readers, "choose_layout", choose)
    policy, wider = named("llama"), build(CONFIGS["llama_tied"]())
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        reference.lm_head.weight.add_(1.0)
    adapted, read = LoRA(rank=2).wrap(copy.deepcopy(policy)), LogProbReaders()
    for model in (policy, reference, wider, adapted, policy):
        read.of(model, telling_batch())
        assert read.layout(model) == "shared"
    assert checked == [policy, wider, adapted]


def test_models_take_turns_in_the_memory_of_a_tile() -> None:
    """One for each dtype, float32 that of the check of 16-bit models; the numbers are those of a reader of its own."""
    read, batch = LogProbReaders(), telling_batch()
    models = [named("llama"), build(CONFIGS["qwen2"](), torch.bfloat16), named("llama_tied")]
    tiles: set[int] = set()
    for model in models:
        read.of(model, batch)(batch)
    for model in models:
        source = read.of(model, batch)
        assert source(batch).policy.equal(LogProbReader(model, ForwardPass(layout=read.layout(model)))(batch).policy)
        tiles |= {memory.data_ptr() for memory in source._workspace._memory.values()}
    assert len(tiles) == 3


@pytest.mark.parametrize("objective", ["sr_dpo", pytest.param("kto", marks=pytest.mark.long)])
def test_portions_of_a_shared_layout(rows: Path, tmp_path: Path, in_padded_rows: Run, objective: str) -> None:
    """Batch-level objectives are read in chunks as well."""
    more = ("--data.batch_size", 4, LAYOUT, "shared", TOKENS, 200)
    ok(lit_align(*words(tmp_path / "run", rows, objective, *more)))
    assert_same(tmp_path / "run", in_padded_rows(objective))


@pytest.mark.long  # tests/test_partitions.py trains every objective
@pytest.mark.parametrize(
    ("strategy", "objective", "tokens"),
    [("ddp", "sr_dpo", 120), ("ddp", "kto", 120), ("fsdp", "sr_dpo", 0), ("fsdp", "kto", 120)],
)
def test_two_processes(  # noqa: PLR0913
    rows: Path, tmp_path: Path, in_padded_rows: Run, strategy: str, objective: str, tokens: int
) -> None:
    """Their batches have different numbers of tokens, so the numbers of chunks would differ as well."""
    more = ("--data.batch_size", 2, LAYOUT, "shared", TOKENS, tokens, "--trainer.strategy", strategy)
    for ended in distributed(2, *words(tmp_path / "run", rows, objective, *more)):
        ok(ended)
    assert_same(tmp_path / "run", in_padded_rows(objective))
