"""Log-probabilities of the scored response tokens under a causal language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_align.types import PairBatch, PairMask, PairTokens


def response_log_probs(model: nn.Module, batch: PairBatch) -> PairTokens:
    r"""$\log\pi(y_t \mid x, y_{<t})$ for every scored token, in float32, packed to the left.

    Both sides go through one forward pass. The softmax is taken on scored positions only; padding and prompt
    never enter. Float64 models stay in float64.

    Args:
        model: a causal language model that returns ``.logits`` of shape ``[row, token, vocabulary]``.
        batch: the pairs; right padding.

    Returns:
        ``[pair, side, token]`` with as many tokens as the longest response has scored ones; zero behind each
        response's end. ``packed_mask`` gives the mask that belongs to it.
    """
    pairs, sides, _ = batch.input_ids.shape
    ids = batch.input_ids.flatten(0, 1)
    logits: Tensor = model(input_ids=ids, attention_mask=batch.attention_mask.flatten(0, 1), use_cache=False).logits
    scored = batch.mask.flatten(0, 1)[:, 1:]
    rows, columns = scored.nonzero(as_tuple=True)
    chosen = logits[rows, columns]
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    values = chosen.gather(-1, ids[rows, columns + 1].unsqueeze(-1)).squeeze(-1) - chosen.logsumexp(-1)
    places = scored.cumsum(-1)[rows, columns] - 1
    packed = values.new_zeros(ids.shape[0], int(batch.lengths.max())).index_put((rows, places), values)
    return packed.view(pairs, sides, -1)


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
