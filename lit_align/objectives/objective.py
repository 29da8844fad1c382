"""An objective turns the log-probabilities of a batch of pairs into one loss per pair and what there is to report."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lit_align.types import Outcome, PairLogProbs


class Objective(ABC):
    """What is optimised.

    An objective sees log-probabilities and nothing else: no model, no tokenizer, no batch of ids. It answers for what
    it needs through properties, and whoever prepares its input reads them instead of testing for a class. The
    defaults are those of the common case; a leaf states where it differs.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether ``logps.reference`` must be there; True unless a leaf says otherwise."""
        return True

    @property
    def needs_prompted(self) -> bool:
        """Whether ``logps.prompted`` must be there; False unless a leaf says otherwise."""
        return False

    @property
    def needs_rejected(self) -> bool:
        """Whether the rejected side must be there; True unless a leaf says otherwise."""
        return True

    @property
    def accepts_unpaired(self) -> bool:
        """Whether a row may have one side only; False unless a leaf says otherwise."""
        return False

    @property
    def honours(self) -> frozenset[str]:
        """Which of ``margin`` and ``preference_probability`` change the loss; none unless a leaf says otherwise."""
        return frozenset()

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
