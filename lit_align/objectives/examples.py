"""The example that the docstrings and tests of this package compute by hand."""

from __future__ import annotations

import torch

from lit_align.types import PairLogProbs


def worked_pair() -> PairLogProbs:
    """Return one pair with round numbers, in nats.

    ==================  ========  =====  =====  ==========  =========
    side                n         Σ lp   Σ ref  log-ratio   per token
    ==================  ========  =====  =====  ==========  =========
    chosen              10        -20    -25    5           0.5
    rejected            40        -60    -58    -2          -0.05
    chosen, prompted    10        -22    -25    3           0.3
    rejected, prompted  40        -58    -58    0           0
    ==================  ========  =====  =====  ==========  =========

    So the margin is 7 with sums and 0.55 with means; under the quality prompt it is 3 and 0.3.

    >>> from lit_align.objectives import dpo
    >>> round(dpo().margin(worked_pair()).item(), 4)
    7.0
    """
    mask = torch.arange(40) < torch.tensor([[[10], [40]]])
    reference = mask * torch.tensor([[[-2.5], [-1.45]]])
    prompted = PairLogProbs(policy=mask * torch.tensor([[[-2.2], [-1.45]]]), reference=reference, mask=mask)
    return PairLogProbs(
        policy=mask * torch.tensor([[[-2.0], [-1.5]]]), reference=reference, mask=mask, prompted=prompted
    )
