"""A toy of four tokens on which the optimum of matching runs towards the length limit, solved without enumeration.

Every position has the same reference probabilities, so a response of n tokens is a product of n weights, and the
distribution of lengths follows from their sum. ``tests/theory/test_lengths.py`` compares it with all responses listed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.online import KLAfter, LengthControl, NoLengthControl, Problem, TokenCost

REFERENCE = (0.45, 0.30, 0.05, 0.20)
"""π_ref of the tokens at every position; the last one ends the response."""
END = len(REFERENCE) - 1


@dataclass(frozen=True)
class Toy:
    """The problem with equal scores of all responses.

    Args:
        regularizer: the penalty of each token.
        length: the length control.
        limit: tokens of the longest response, which is cut.
        beta: weight β of the penalty; without scores it has no effect.
    """

    regularizer: Regularizer
    length: LengthControl = NoLengthControl()
    limit: int = 10
    beta: float = 1.0

    def weights(self, place: int) -> tuple[float, float]:
        """Return the weights at a position, which are not normalised: of all tokens that go on, and of the end."""
        late = isinstance(self.length, KLAfter) and place >= self.length.tokens
        regularizer = KL() if late else self.regularizer
        reference = torch.tensor(REFERENCE, dtype=torch.float64).log()
        cost = self.length.cost if isinstance(self.length, TokenCost) else 0.0
        weights = (-regularizer(torch.zeros_like(reference), reference) - cost).exp()
        return float(weights[:END].sum()), float(weights[END])

    def lengths(self) -> tuple[Tensor, float]:
        """Return the probability of each length, 1 to the limit, and the share of responses that are cut."""
        log_weights, prefix = [], 0.0
        for place in range(self.limit):
            going_on, end = (torch.tensor(weight, dtype=torch.float64).log() for weight in self.weights(place))
            log_weights.append(prefix + end)
            prefix = prefix + going_on
        log_weights.append(prefix)
        counted = torch.tensor([*range(1, self.limit + 1), self.limit], dtype=torch.float64)
        log_shares = torch.stack([torch.as_tensor(weight, dtype=torch.float64) for weight in log_weights])
        if self.length.power:
            log_shares = log_shares + counted * _cost(log_shares, counted)
        shares = log_shares.softmax(0)
        ended, cut = shares[:-1].clone(), float(shares[-1])
        ended[-1] += cut
        return ended, cut

    def mean_length(self) -> float:
        """Return the mean length of the optimum."""
        shares, _ = self.lengths()
        return float((shares * torch.arange(1, self.limit + 1)).sum())

    def listed(self, score: Tensor | None = None) -> tuple[Problem, Tensor, Tensor]:
        """Return the problem on all responses, their lengths, and whether each is cut."""
        words = list(range(END))
        responses = [
            (*words, END) for count in range(self.limit) for words in itertools.product(range(END), repeat=count)
        ]
        responses += list(itertools.product(words, repeat=self.limit))
        lengths = torch.tensor([len(response) for response in responses])
        ids = torch.tensor([[*response, *[END] * (self.limit - len(response))] for response in responses])
        reference = torch.tensor(REFERENCE, dtype=torch.float64).log()[ids]
        score = torch.zeros(len(responses), dtype=torch.float64) if score is None else score
        mask = torch.arange(self.limit) < lengths[:, None]
        cut = torch.tensor([response[-1] != END for response in responses])
        return Problem(self.regularizer, self.beta, score, mask, reference, self.length), lengths, cut


def _cost(log_weights: Tensor, counted: Tensor) -> float:
    """Return c with ``Σ weight exp(n c) = 1``, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if float((log_weights + counted * middle).logsumexp(0)) > 0 else (middle, high)
    return low
