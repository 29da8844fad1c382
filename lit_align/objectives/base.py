"""What an objective is, what it may need, and helpers that its parts share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from lit_align.types import Margin, Outcome, PairLogProbs, PairScores

MARGIN = "margin"
"""Column: by how much the chosen response should win, in the unit of rewards."""
PROBABILITY = "preference_probability"
"""Column: how sure it is that the chosen response is the better one."""


@dataclass(frozen=True)
class Scale:
    """A β and the scale of what it multiplies.

    Args:
        name: of the term that it belongs to; empty for an objective of one term.
        beta: inverse temperature.
        length_power: the power of a response's length that its sum of log-ratios is divided by.
        sets_target: whether margins are drawn to the target 1 / (2 β), so that a smaller β asks for more.
    """

    name: str
    beta: float
    length_power: float
    sets_target: bool = False

    @classmethod
    def of(cls, beta: float, length_power: float | None, sets_target: bool = False) -> tuple[Scale, ...]:
        """Return the scale of a single term; none where no power of the length is known."""
        return () if length_power is None else (cls("", beta, length_power, sets_target),)


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
        """Join the needs of two parts; rows may be unpaired only if both accept them."""
        joined = {part.name: getattr(self, part.name) | getattr(other, part.name) for part in fields(self)}
        return Needs(**{**joined, "unpaired": self.unpaired and other.unpaired})


NO_NEEDS = Needs(unpaired=True)
"""What a part needs that works with any log-probabilities: joining it to other needs leaves them as they are."""


class Part:
    """Base of all parts, which checks the fields whose ranges a subclass states.

    Raises:
        ValueError: a field is out of its range.
    """

    ranges: ClassVar[Mapping[str, str]] = {}
    """Field to interval, as `check_field` takes it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field, interval in self.ranges.items():
            check_field(self, field, interval)


class Objective(ABC):
    """What is optimised.

    An objective sees log-probabilities and nothing else: no model, no tokenizer, no batch of ids. It answers for what
    it needs through ``needs`` and the other properties, whose defaults are those of the common case.
    """

    @property
    def needs(self) -> Needs:
        """What must be in ``logps``; a reference and both sides unless a subclass overrides it."""
        return Needs(reference=True, rejected=True)

    @property
    def initial_state(self) -> Mapping[str, float]:
        """The objective state before the first step: numbers carried from step to step, by name; none by default."""
        return {}

    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state after an optimizer step; unchanged unless a subclass overrides it.

        Args:
            state: the state before the step, float64 scalars.
            observed: for each name in ``Outcome.observed``, its weighted mean over all pairs of the step.
        """
        return state

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Each β that sets a slope, with what it multiplies (`beta_scale`); none unless a subclass overrides it."""
        return ()

    @property
    def prompted_length_power(self) -> float | None:
        """The power of the length by which margins under the quality prompt are divided; None without a prompt."""
        return None

    @property
    def term_names(self) -> tuple[str, ...]:
        """The names under which ``Outcome.terms`` reports parts of the loss; none unless a subclass overrides it."""
        return ()

    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin | None:
        """Return ``|d loss / d margin|`` of each pair, per nat: what it still teaches; None where there is no margin.

        A diagnostic for the metrics: no gradient, and not computed with the loss.

        Args:
            logps: log-probabilities of some pairs.
            outcome: what the objective made of them.
        """
        return None

    @abstractmethod
    def __call__(self, logps: PairLogProbs) -> Outcome:
        """Return the loss of each pair, not yet averaged over the batch, and what there is to report about it.

        Args:
            logps: log-probabilities of the scored response tokens, in nats.
        """


def chosen_minus_rejected(scores: PairScores) -> Margin:
    """Return the difference of the two sides of each pair."""
    return scores[:, 0] - scores[:, 1]


def refined(outcome: Outcome) -> Margin:
    """Return the margin that the contrast saw, which is margin minus offset."""
    assert outcome.margin is not None
    return outcome.margin if outcome.offset is None else outcome.margin - outcome.offset


def check_field(part: object, key: str, interval: str) -> None:
    """Raise unless a field of a part is a finite number inside an interval.

    Args:
        part: the object whose field is checked.
        key: name of the field.
        interval: the accepted numbers as one writes them on paper, ``(0, inf)`` or ``[0, 0.5)``: a round bracket
            leaves the end out, a square one keeps it in.

    Raises:
        ValueError: the number is outside; the message names the class, the field, its value and what is accepted.

    >>> from lit_align.objectives import Logistic
    >>> Logistic(beta=-0.1)
    Traceback (most recent call last):
    ValueError: Logistic.beta is -0.1; expected a finite number in (0, 1e6]
    """
    value = float(getattr(part, key))
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval.startswith("[") else value > low
    below = value <= high if interval.endswith("]") else value < high
    if not (math.isfinite(value) and above and below):
        raise ValueError(f"{type(part).__name__}.{key} is {value}; expected a finite number in {interval}")
