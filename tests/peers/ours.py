"""Losses and gradients of this package, from data module to objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_align.data import PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.models import SecondModel
from lit_align.modules import LitPreference
from lit_align.objectives import Objective
from lit_align.types import PairBatch, PairLogProbs

from .setting import Measured, Setting


def batch_of(setting: Setting) -> PairBatch:
    """Return all pairs in one batch."""
    data = PreferenceData(train=str(setting.pairs), tokenizer=str(setting.policy), cache=None)
    data.prepare_all()
    return Collate(pad=0)([(pair, 1.0) for pair in data.splits["train"].store])


@dataclass(frozen=True)
class Ours:
    """One objective on the batch.

    Args:
        objective: what is optimised.
        setting: where the models are.
        batch: the pairs.
    """

    objective: Objective
    setting: Setting
    batch: PairBatch

    @cached_property
    def module(self) -> LitPreference:
        """The module with its models loaded, which computes log-probabilities as in training."""
        reference = SecondModel(str(self.setting.reference)) if self.objective.needs.reference else None
        module = LitPreference(str(self.setting.policy), self.objective, reference=reference)
        module.configure_model()
        return module

    @cached_property
    def logps(self) -> PairLogProbs:
        """Return the log-probabilities that the objective gets."""
        return self.module(self.batch)

    @cached_property
    def with_prompt(self) -> PairLogProbs:
        """Return them with the prompt's tokens scored, too, except for the first."""
        scored = self.batch.attention_mask.clone()
        scored[..., 0] = False
        return self.module(replace(self.batch, mask=scored))

    def measured(self, total: Callable[[Ours], Tensor]) -> Measured:
        """Return the loss of the batch, reduced from the losses of pairs by a function, and its gradient."""
        loss = total(self)
        loss.backward()
        named: Any = self.module.policy.named_parameters()
        gradient = {name: weight.grad for name, weight in named if weight.grad is not None}
        self.module.zero_grad(set_to_none=True)
        return Measured(loss.item(), gradient)


def mean(ours: Ours) -> Tensor:
    """Return the mean over pairs, which is the training loss."""
    return ours.objective(ours.logps).loss.mean()


def per_token(losses: Tensor, logps: PairLogProbs) -> Tensor:
    """Return Σ_i n_i loss_i / Σ_i n_i over chosen responses, the mean over all their tokens."""
    lengths = torch.as_tensor(logps.lengths[:, 0])
    return (losses * lengths).sum() / lengths.sum()
