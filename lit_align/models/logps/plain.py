"""The definition of response log-probabilities: padded rows, whole logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_align.types import PairBatch, PairMask, PairTokens


def response_log_probs(model: nn.Module, batch: PairBatch) -> PairTokens:
    r"""Compute $\log\pi(y_t \mid x, y_{<t})$ for every scored token, in float32, left-aligned.

    Both sides go through one forward pass; absent sides are left out. The softmax is taken at scored positions only.
    Float64 models stay in float64.

    Args:
        model: a causal language model that returns ``.logits`` of shape ``[row, token, vocabulary]``.
        batch: the pairs, padded on the right.

    Returns:
        ``[pair, side, token]`` with as many tokens as the longest response has scored ones, zero after the end of
        each response. `packed_mask` returns the matching mask.
    """
    pairs, sides, _ = batch.input_ids.shape
    present = batch.mask.flatten(0, 1).any(-1).nonzero().squeeze(-1)
    present = present if len(present) else present.new_zeros(1)
    ids, scored = batch.input_ids.flatten(0, 1)[present], batch.mask.flatten(0, 1)[present][:, 1:]
    attention = batch.attention_mask.flatten(0, 1)[present]
    logits: Tensor = model(input_ids=ids, attention_mask=attention, use_cache=False).logits
    rows, columns = scored.nonzero(as_tuple=True)
    chosen = logits[rows, columns]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    values = chosen.gather(-1, ids[rows, columns + 1].unsqueeze(-1)).squeeze(-1) - chosen.logsumexp(-1)
    places = (present[rows], scored.cumsum(-1)[rows, columns] - 1)
    return values.new_zeros(pairs * sides, int(batch.lengths.max())).index_put(places, values).view(pairs, sides, -1)


def packed_mask(batch: PairBatch) -> PairMask:
    """Return the mask of left-aligned response tokens: true at the first ``lengths`` positions of each response.

    >>> from lit_align.types import PairBatch
    >>> row = torch.tensor([[[False, True, False, True], [False, True, False, False]]])
    >>> ones = torch.ones(1, 2, 4)
    >>> batch = PairBatch(ones.long(), ones.bool(), row, ones[..., 0].bool(), ones[:, 0, 0], ones[:, 0, 0].long())
    >>> packed_mask(batch).tolist()
    [[[True, True], [True, False]]]
    """
    lengths = batch.lengths
    return torch.arange(int(batch.on_host.lengths.max()), device=lengths.device) < lengths.unsqueeze(-1)
