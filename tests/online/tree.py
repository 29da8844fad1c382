"""A world of seven responses: three tokens, of which 0 ends, two at most; a policy is three rows of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_align.objectives.regularizer import Regularizer
from lit_align.online import Problem
from lit_align.types import Rollout

RESPONSES = ((0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2))
MASK = torch.tensor([[True, len(response) == 2] for response in RESPONSES])
SCORE = torch.tensor([0.3, 1.2, -0.4, 0.8, -1.0, 0.5, 0.1], dtype=torch.float64)
FIRST = torch.tensor([response[0] for response in RESPONSES])
SECOND = torch.tensor([response[-1] for response in RESPONSES])


def logits(seed: int, spread: float = 1.0) -> Tensor:
    """Rows: before the first token, after token 1, after token 2 (row 0 twice over is never reached)."""
    return spread * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: Tensor) -> Tensor:
    """Log-probabilities of the tokens of every response, ``[response, 2]``."""
    log_probs = rows.log_softmax(-1)
    second = torch.where(MASK[:, 1], log_probs[FIRST, SECOND], 0.0)
    return torch.stack([log_probs[0, FIRST], second], dim=1)


def whole(rows: Tensor) -> Tensor:
    """Log-probability of every response."""
    return tokens(rows).sum(-1)


REFERENCE = tokens(logits(7))


def problem(regularizer: Regularizer, beta: float) -> Problem:
    return Problem(regularizer, beta, SCORE, MASK, REFERENCE if regularizer.needs.reference else None)


def draw(rows: Tensor, prompts: int, each: int, seed: int) -> Tensor:
    """Numbers of responses, ``[prompts × each]``, those to one prompt side by side."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(whole(rows.detach()).exp(), prompts * each, replacement=True, generator=generator)


def rollout(rows: Tensor, drawn: Tensor, each: int, regularizer: Regularizer) -> Rollout:
    """The drawn responses as a record, with the most likely response's score as greedy."""
    count = len(drawn)
    ones = torch.ones(count, dtype=torch.float64)
    return Rollout(
        policy=tokens(rows.detach())[drawn],
        mask=MASK[drawn],
        score=SCORE[drawn],
        group=torch.arange(count) // each,
        weight=ones,
        reference=REFERENCE[drawn] if regularizer.needs.reference else None,
        values=torch.zeros(count, 2, dtype=torch.float64),
        greedy=SCORE[greedy(rows)].expand(count),
    )


def greedy(rows: Tensor) -> int:
    """Number of the response made of the most likely token each time."""
    first = int(rows[0].argmax())
    return 0 if first == 0 else RESPONSES.index((first, int(rows[first].argmax())))
