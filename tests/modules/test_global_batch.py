"""Losses across pairs are evaluated on the global batch, gradients included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.modules.global_batch import evaluate_globally, moved
from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome, PairBatch, PairLogProbs


@dataclass(frozen=True)
class Ranks(Objective):
    """A loss that depends on all pairs: each margin times its position, plus the mean margin squared."""

    needs = Needs(reference=True, rejected=True, batch_level=True)

    def __call__(self, logps: PairLogProbs) -> Outcome:
        ratio = (logps.policy * logps.mask).sum(-1)
        margin = ratio[:, 0] - ratio[:, 1]
        place = torch.arange(len(margin)) + 1.0
        beside = 0.0 if logps.mismatched is None else logps.mismatched.policy.sum()
        loss = margin * place + margin.mean() ** 2 + beside
        return Outcome(loss, ratio.detach(), margin=margin.detach(), terms={"place": place}, observed={"m": margin})


def made(pairs: int, width: int, first: int, seed: int = 0) -> tuple[PairLogProbs, PairBatch]:
    """Random log-probs, whose pairs stand at ``first`` and further in the data, the last one first."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.randint(1, width + 1, (pairs, 2, 1), generator=generator)
    policy = torch.randn(pairs, 2, width, generator=generator) * mask
    crossed = PairLogProbs(policy.flip(0).abs(), None, mask.flip(0))
    logps = PairLogProbs(policy.requires_grad_(), None, mask, mismatched=crossed)
    index = torch.arange(first, first + pairs).flip(0)
    weight = torch.rand(pairs, generator=generator) + 0.5
    return logps, PairBatch(mask.long(), mask, mask, mask[..., 0], weight, index)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)


def test_batches_of_other_widths_and_orders(trainer: Trainer) -> None:
    """Compare with a record that is assembled by hand in the order of the data."""
    parts = [made(2, 3, first=3, seed=1), made(3, 5, first=0, seed=2)]
    judged = evaluate_globally(Ranks(), [one for one, _ in parts], [batch for _, batch in parts], trainer)
    wide = torch.zeros(5, 2, 5)
    crossed, mask, weight = wide.clone(), wide.bool(), torch.zeros(5)
    for logps, batch in parts:
        assert logps.mismatched is not None
        for row, place in enumerate(batch.index.tolist()):
            width = logps.policy.shape[-1]
            wide[place, :, :width], mask[place, :, :width] = logps.policy[row].detach(), logps.mask[row]
            crossed[place, :, :width], weight[place] = logps.mismatched.policy[row], batch.weight[row]
    wide.requires_grad_()
    whole = Ranks()(PairLogProbs(wide, None, mask, mismatched=PairLogProbs(crossed, None, mask)))
    (pull,) = torch.autograd.grad((whole.loss * weight).sum(), wide)
    for (logps, batch), found in zip(parts, judged, strict=True):
        torch.testing.assert_close(found.outcome.loss, whole.loss.detach()[batch.index])
        torch.testing.assert_close(found.outcome.terms["place"], whole.terms["place"][batch.index])
        assert found.outcome.margin is not None
        assert not found.outcome.observed["m"].requires_grad
        torch.testing.assert_close(found.grad_logps, pull[batch.index, :, : logps.policy.shape[-1]])


def test_a_batch_alone_is_judged_otherwise(trainer: Trainer) -> None:
    """The wrong variant: one evaluation per micro-batch."""
    parts = [made(2, 3, first=3, seed=1), made(3, 5, first=0, seed=2)]
    together = evaluate_globally(Ranks(), [one for one, _ in parts], [batch for _, batch in parts], trainer)
    alone = evaluate_globally(Ranks(), [parts[0][0]], [parts[0][1]], trainer)
    assert not torch.allclose(together[0].outcome.loss, alone[0].outcome.loss)


def test_copies_of_weight_zero_are_not_there(trainer: Trainer) -> None:
    logps, batch = made(3, 4, first=0)
    copy, its = made(1, 6, first=1, seed=9)
    its = replace(its, weight=torch.zeros(1))
    with_copy = evaluate_globally(Ranks(), [logps, copy], [batch, its], trainer)
    without = evaluate_globally(Ranks(), [logps], [batch], trainer)
    torch.testing.assert_close(with_copy[0].outcome.loss, without[0].outcome.loss)
    torch.testing.assert_close(with_copy[0].grad_logps, without[0].grad_logps)
    assert not with_copy[1].grad_logps.any()


def test_nothing_is_differentiated_in_an_evaluation(trainer: Trainer) -> None:
    with torch.inference_mode():
        logps, batch = moved(made(3, 4, first=0)[0], "cpu"), made(3, 4, first=0)[1]
        (found,) = evaluate_globally(Ranks(), [logps], [batch], trainer, with_grad=False)
    assert not found.grad_logps.any()
    assert not found.loss.requires_grad
    assert found.outcome.loss.isfinite().all()


def test_a_record_moves_with_everything_in_it() -> None:
    logps, _ = made(2, 3, first=0)
    there = moved(replace(logps, state={"shift": torch.ones(())}), "meta")
    assert there.mismatched is not None
    devices = {str(t.device) for t in (there.policy, there.mask, there.mismatched.policy, there.state["shift"])}
    assert devices == {"meta"}
    assert there.reference is None
    assert not there.policy.requires_grad
