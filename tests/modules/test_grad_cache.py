"""A cache of several micro-batches gives the gradient of one batch, an adapter's dropout included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.models import LoRA, SecondModel
from lit_align.modules.grad_cache import GradCache
from lit_align.modules.log_probs import LogProbs
from lit_align.objectives.pair_seed import evaluation_pair_seed
from lit_align.types import PairBatch, PairLogProbs
from tests.conftest import pair_batch, tiny_llama
from tests.modules.test_global_batch import Ranks


class Crossless(Ranks):
    """Without mismatched pairs."""


def parts() -> list[PairBatch]:
    first = pair_batch([[1, 5, 6], [1, 8]], [([14, 15, 2], [16, 2]), ([17, 2], [21, 18, 19, 20, 2])])
    second = pair_batch([[1, 9, 10, 11]], [([22, 2], [23, 24, 2])])
    second.index.add_(2)
    return [first, second]


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)


def grad_cache(log_probs: LogProbs, seed: int = 0) -> GradCache:
    def everything(batch: PairBatch) -> PairLogProbs:
        return log_probs(batch, evaluation_pair_seed(batch.index), {})

    return GradCache(everything, log_probs.policy_alone, seed, torch.device("cpu"))


def scored(model: torch.nn.Module) -> LogProbs:
    return LogProbs(Crossless(), model, None)


def test_the_gradient_is_that_of_all_micro_batches_at_once(trainer: Trainer) -> None:
    model, batches = tiny_llama().double(), parts()
    log_probs = scored(model)
    cache = GradCache(
        lambda batch: log_probs(batch, evaluation_pair_seed(batch.index), {}),
        log_probs.policy_alone,
        0,
        torch.device("cpu"),
    )
    outputs = cache.evaluate(Crossless(), batches, trainer)
    cache.backward(batches, outputs, world_size=1).backward()
    found = gradients(model)
    model.zero_grad()
    whole = [log_probs(batch, evaluation_pair_seed(batch.index), {}) for batch in batches]
    margins = torch.cat([(one.policy.sum(-1)[:, 0] - one.policy.sum(-1)[:, 1]) for one in whole])
    (margins * torch.tensor([1.0, 2.0, 3.0]) + margins.mean() ** 2).sum().backward()
    for name, expected in gradients(model).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-7)


def test_one_micro_batch_goes_through_once(trainer: Trainer) -> None:
    model, (batch, _) = tiny_llama(), parts()
    log_probs, passes = scored(model), []
    log_probs.readers.of(model, batch)
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    cache = GradCache(
        lambda batch: log_probs(batch, evaluation_pair_seed(batch.index), {}),
        log_probs.policy_alone,
        0,
        torch.device("cpu"),
    )
    outputs = cache.evaluate(Crossless(), [batch], trainer)
    cache.backward([batch], outputs, world_size=1).backward()
    assert passes == [1]
    assert gradients(model)


@pytest.mark.parametrize("same", [True, False])
def test_both_passes_have_the_same_dropout(trainer: Trainer, same: bool) -> None:
    """The wrong variant: another cache, of another step, has another dropout."""
    model = LoRA(rank=4, dropout=0.5).wrap(tiny_llama()).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    log_probs, batches = scored(model), parts()
    caches = [
        GradCache(
            lambda batch: log_probs(batch, evaluation_pair_seed(batch.index), {}),
            log_probs.policy_alone,
            seed,
            torch.device("cpu"),
        )
        for seed in (3, 3 if same else 4)
    ]
    state = torch.get_rng_state()
    found = [caches[0].evaluate(Crossless(), batches, trainer)[1].logps.policy]
    with torch.no_grad(), caches[1]._dropout(1):
        found.append(log_probs.policy_alone(batches[1]))
    assert torch.equal(found[0], found[1]) == same
    assert torch.equal(torch.get_rng_state(), state)


def test_the_reference_and_what_is_not_needed_stay_out() -> None:
    model, reference = tiny_llama(), SecondModel()
    reference.attach(model)
    (batch, _) = parts()
    log_probs = LogProbs(Crossless(), model, reference)
    reference.read_with(log_probs.readers.read)
    logps = log_probs(batch, evaluation_pair_seed(batch.index), {})
    assert logps.reference is not None
    assert logps.reference.equal(logps.policy.detach())
    assert logps.prompted is logps.mismatched is logps.collision is None
