"""Scoring turns a batch into what its objective needs of policy and reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from lit_align.models import Extras, HeadSum
from lit_align.models.embedding import rows_added
from lit_align.models.log_probs import ResponseLogProbs, packed_mask
from lit_align.models.reference import Reference
from lit_align.modules.sources import Sources
from lit_align.objectives.objective import Objective
from lit_align.types import PairBatch, PairDraw, PairLogProbs, PairTokens


@dataclass(frozen=True)
class Charged:
    """A batch's summed, weighted loss with its graph, and the log-probabilities that it was formed from, without."""

    loss: Tensor
    logps: PairLogProbs


@dataclass(frozen=True)
class Scoring:
    """Log-probabilities of a batch under policy and reference, and nothing that the objective does not need.

    Args:
        objective: says what it needs.
        policy: the model that is trained.
        reference: where the frozen log-probabilities come from; None where none are needed.
        sources: how models are read.
    """

    objective: Objective
    policy: nn.Module
    reference: Reference | None
    sources: Sources = field(default_factory=Sources)

    def __call__(self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor]) -> PairLogProbs:
        """Everything of a batch; the policy's own log-probs carry the gradient if one is recorded.

        Args:
            batch: the pairs.
            draw: see ``PairLogProbs``.
            running: see ``PairLogProbs``.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        frame = self._frame(batch, draw, running)
        return _filled(frame, self.sources.of(self.policy, batch)(batch, self._extras))

    def charge(
        self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor], head_sum: HeadSum | None = None
    ) -> Charged:
        """The loss of a batch under an objective whose loss is a sum over pairs; logits are formed once.

        Args:
            batch: the pairs.
            draw: see ``PairLogProbs``.
            running: see ``PairLogProbs``.
            head_sum: of all portions of one step; None for a batch that is no portion.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        frame = self._frame(batch, draw, running)

        def loss_of(pairs: slice, found: ResponseLogProbs) -> Tensor:
            return (self.objective(_filled(frame.rows(pairs), found)).loss * batch.weight[pairs]).sum()

        with rows_added(self.policy):
            charged = self.sources.of(self.policy, batch).charge(batch, loss_of, self._extras, head_sum)
        return Charged(charged.loss, _filled(frame, charged.log_probs))

    def again(self, batch: PairBatch) -> PairTokens:
        """The policy's log-probs alone."""
        with rows_added(self.policy):
            return self.sources.read(self.policy, batch)

    @property
    def _extras(self) -> Extras:
        return Extras(collision=self.objective.needs_collision)

    def _frame(self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor]) -> PairLogProbs:
        """Everything but the policy's own log-probs, which are still zero."""
        prompted = self._beside("prompted", batch.prompted, draw) if self.objective.needs_prompted else None
        mismatched = self._beside("mismatched", batch.mismatched, draw) if self.objective.needs_mismatched else None
        mask = packed_mask(batch)
        return PairLogProbs(
            policy=torch.zeros(mask.shape, device=mask.device),
            reference=self._reference(batch),
            mask=mask,
            prompted=prompted,
            mismatched=mismatched,
            draw=draw,
            margin=batch.margin,
            preference_probability=batch.preference_probability,
            running=running,
        )

    @torch.no_grad()
    def _beside(self, name: str, batch: PairBatch | None, draw: PairDraw) -> PairLogProbs:
        """A batch that takes no gradient, without an adapter's dropout whatever the policy's mode."""
        if batch is None:
            raise ValueError(f"the batch has no {name} pairs; build the data with {name}=True")
        with _without_dropout(self.policy):
            policy = self.sources.read(self.policy, batch)
        return PairLogProbs(policy, self._reference(batch), packed_mask(batch), draw=draw)

    def _reference(self, batch: PairBatch) -> PairTokens | None:
        return None if self.reference is None else self.reference.log_probs(batch)


def _filled(frame: PairLogProbs, found: ResponseLogProbs) -> PairLogProbs:
    return replace(frame, policy=found.values, collision=found.collision)


@contextmanager
def _without_dropout(policy: nn.Module) -> Iterator[None]:
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)
