"""Log-probabilities of the scored response tokens under a causal language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_align.types import PairBatch, PairMask, PairTokens


@dataclass(frozen=True)
class ResponseLogProbs:
    """What one forward pass says of the scored response tokens, packed to the left; zero behind each response's end.

    Args:
        values: log π(y_t | x, y_<t); carries the gradient if one is recorded.
        collision: log Σ_v π(v | x, y_<t)², without gradient; None unless it was asked for.
        entropy: of the distribution at each of these tokens in nats, likewise.
    """

    values: PairTokens
    collision: PairTokens | None = None
    entropy: PairTokens | None = None


def response_log_probs(model: nn.Module, batch: PairBatch) -> PairTokens:
    r"""$\log\pi(y_t \mid x, y_{<t})$ for every scored token, in float32, packed to the left.

    Both sides go through one forward pass; a side that is absent goes through none. The softmax is taken on scored
    positions only; padding and prompt never enter. Float64 models stay in float64.

    Args:
        model: a causal language model that returns ``.logits`` of shape ``[row, token, vocabulary]``.
        batch: the pairs; right padding.

    Returns:
        ``[pair, side, token]`` with as many tokens as the longest response has scored ones; zero behind each
        response's end. ``packed_mask`` gives the mask that belongs to it.
    """
    return score_responses(model, batch).values


def score_responses(model: nn.Module, batch: PairBatch, collision: bool = False) -> ResponseLogProbs:
    r"""As ``response_log_probs``, with what else the same forward pass can say.

    Args:
        model: a causal language model that returns ``.logits`` of shape ``[row, token, vocabulary]``.
        batch: the pairs; right padding.
        collision: also give $\log\sum_v\pi(v \mid x, y_{<t})^2$, the log-probability of drawing a token twice.
    """
    pairs, sides, _ = batch.input_ids.shape
    there = _present(batch)
    ids, scored = batch.input_ids.flatten(0, 1)[there], batch.mask.flatten(0, 1)[there][:, 1:]
    attention = batch.attention_mask.flatten(0, 1)[there]
    logits: Tensor = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    rows, columns = scored.nonzero(as_tuple=True)
    chosen = logits[rows, columns]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    normalizer = chosen.logsumexp(-1)
    values = chosen.gather(-1, ids[rows, columns + 1].unsqueeze(-1)).squeeze(-1) - normalizer
    places = (there[rows], scored.cumsum(-1)[rows, columns] - 1)

    def packed(found: Tensor) -> PairTokens:
        empty = found.new_zeros(pairs * sides, int(batch.lengths.max()))
        return empty.index_put(places, found).view(pairs, sides, -1)

    if not collision:
        return ResponseLogProbs(packed(values))
    with torch.no_grad():
        twice = (2 * chosen).logsumexp(-1) - 2 * normalizer
    return ResponseLogProbs(packed(values), packed(twice))


def _present(batch: PairBatch) -> Int[Tensor, " row"]:
    """The rows, of both sides of all pairs, that have a scored token; the first if none has."""
    there = batch.mask.flatten(0, 1).any(-1).nonzero().squeeze(-1)
    return there if len(there) else there.new_zeros(1)


def packed_mask(batch: PairBatch) -> PairMask:
    """The mask of ``response_log_probs``: true on the first ``lengths`` places of each response.

    >>> from lit_align.types import PairBatch
    >>> row = torch.tensor([[[False, True, False, True], [False, True, False, False]]])
    >>> ones = torch.ones(1, 2, 4)
    >>> batch = PairBatch(ones.long(), ones.bool(), row, ones[..., 0].bool(), ones[:, 0, 0], ones[:, 0, 0].long())
    >>> packed_mask(batch).tolist()
    [[[True, True], [True, False]]]
    """
    lengths = batch.lengths
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(-1)
