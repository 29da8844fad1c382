"""The loss of reward models: the scores of both sides in the contrast that direct alignment uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lit_align.objectives.base import check_field
from lit_align.objectives.contrast import Contrast, Logistic
from lit_align.objectives.papers import Paper
from lit_align.online.papers import INSTRUCT
from lit_align.types import Margin, Outcome, PairScores


@dataclass(frozen=True)
class BradleyTerry:
    """``contrast(s_w - s_l - margin) + centring (s_w + s_l)²``; with the default, ``-log σ(s_w - s_l)``.

    Paper: Ouyang et al. 2022, arXiv:2203.02155, Eq. 1; the margin as in Llama 2, arXiv:2307.09288, Eq. 2; centring,
    which fixes the constant that the contrast leaves open, from Eisenstein et al. 2023, arXiv:2312.09244, Sec. 3.

    Args:
        contrast: from the margin to the loss; with β = 1 the scores are in nats, as on-policy training takes them.
        centring: weight of the squared sum, 0 or more.

    >>> import torch
    >>> BradleyTerry()(torch.tensor([[0.5, -0.5]])).loss  # -log σ(1)
    tensor([0.3133])
    >>> BradleyTerry(centring=0.5)(torch.tensor([[1.5, 0.5]]), margin=torch.tensor([1.0])).loss  # log 2 + 0.5 · 4
    tensor([2.6931])
    """

    contrast: Contrast = Logistic(beta=1.0)
    centring: float = 0.0
    source: ClassVar[Paper | None] = INSTRUCT

    def __post_init__(self) -> None:
        # a dataclass without a base, so that the command line takes its fields as keys of model.objective
        check_field(self, "centring", "[0, inf)")

    def __call__(self, scores: PairScores, margin: Margin | None = None) -> Outcome:
        """Return the loss of each pair, and what there is to report.

        Args:
            scores: what the model says of chosen and rejected.
            margin: by how much chosen should win, in the unit of the scores; None for nothing.
        """
        gap = scores[:, 0] - scores[:, 1]
        wanted = gap if margin is None else gap - margin
        loss = self.contrast(wanted) + self.centring * scores.sum(-1) ** 2
        return Outcome(loss=loss, rewards=scores.detach(), margin=gap.detach())
