"""An objective turns the log-probabilities of a batch of pairs into one loss per pair and what there is to report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from lit_align.types import Outcome, PairLogProbs

MARGIN = "margin"
"""Column: by how much the chosen response shall win, in the unit of rewards."""
PROBABILITY = "preference_probability"
"""Column: how sure it is that the chosen response is the better one."""


@dataclass(frozen=True)
class Scale:
    """A β together with what stands beside it.

    Args:
        name: of the term that it belongs to; empty for an objective of one term.
        beta: inverse temperature.
        length_power: the power of a response's length that its sum of log-ratios is divided by.
    """

    name: str
    beta: float
    length_power: float


@dataclass(frozen=True)
class Needs:
    """What an objective, or a part of one, needs and accepts.

    Whoever prepares the log-probabilities of an objective reads this record instead of testing for a class. The needs
    of a composed objective are those of its parts joined with ``|``.

    Args:
        reference: ``logps.reference`` must be there.
        prompted: ``logps.prompted`` must be there.
        rejected: the rejected side must be there.
        mismatched: ``logps.mismatched`` must be there.
        collision: ``logps.collision`` must be there.
        pair_seed: a number per pair must be there, for averagings that sample tokens.
        batch_level: a pair's loss depends on the other pairs. Such an objective is called once per optimizer step,
            with the pairs of all micro-batches and ranks (copies of weight 0 left out), so that its loss does not
            depend on how the step is split up.
        unpaired: a row may have one side only.
        columns: which of ``margin`` and ``preference_probability`` change the loss.
        required_columns: which of these the data must have.

    >>> Needs(reference=True, unpaired=True) | Needs(pair_seed=True, rejected=True) == Needs(
    ...     reference=True, pair_seed=True, rejected=True
    ... )
    True
    """

    reference: bool = False
    prompted: bool = False
    rejected: bool = False
    mismatched: bool = False
    collision: bool = False
    pair_seed: bool = False
    batch_level: bool = False
    unpaired: bool = False
    columns: frozenset[str] = frozenset()
    required_columns: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        """What either needs; rows may be unpaired only if both accept them."""
        joined = {part.name: getattr(self, part.name) | getattr(other, part.name) for part in fields(self)}
        return Needs(**{**joined, "unpaired": self.unpaired and other.unpaired})


NO_NEEDS = Needs(unpaired=True)
"""What a part needs that works with any log-probabilities: joining it to other needs leaves them as they are."""


class Objective(ABC):
    """What is optimised.

    An objective sees log-probabilities and nothing else: no model, no tokenizer, no batch of ids. It answers for what
    it needs through ``needs`` and the other properties, whose defaults are those of the common case.
    """

    @property
    def needs(self) -> Needs:
        """What must be in ``logps``; a reference and both sides unless a leaf says otherwise."""
        return Needs(reference=True, rejected=True)

    @property
    def running(self) -> Mapping[str, float]:
        """Numbers that are carried from one optimizer step to the next, with their first values; none by default."""
        return {}

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The running numbers after an optimizer step; as they were unless a leaf says otherwise.

        Args:
            running: the numbers before the step, float64 scalars.
            observed: for each name in ``Outcome.observed``, its weighted mean over all pairs of the step.
        """
        return running

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Each β that sets a slope, with what it multiplies; none unless a leaf says otherwise.

        What they mean is said in `lit_align.objectives.beta_scale`.
        """
        return ()

    @property
    def term_names(self) -> tuple[str, ...]:
        """The names under which ``Outcome.terms`` reports parts of the loss; none unless a leaf says otherwise."""
        return ()

    @abstractmethod
    def __call__(self, logps: PairLogProbs) -> Outcome:
        """The loss of each pair, not yet averaged over the batch, and what there is to report about it.

        Args:
            logps: log-probabilities of the scored response tokens, in nats.
        """
