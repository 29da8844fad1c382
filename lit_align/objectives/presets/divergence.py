"""Presets that replace the reverse KL of DPO by another divergence, on the log-ratios 5 and -2 of the worked pair."""

from __future__ import annotations

from lit_align.objectives.contrast import Logistic
from lit_align.objectives.divergence import Alpha, ForwardKL, JensenShannon
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset


@preset(Group.DIVERGENCE, "the policy should keep all that the reference does, at some cost in reward")
def forward_kl_dpo(beta: float = 0.1) -> PreferenceObjective:
    """``-log σ(β (e^{-r_l} - e^{-r_w}))``: DPO for a policy that covers what the reference does.

    Parts: Logistic, ForwardKL. Paper: Wang et al. 2023, arXiv:2309.16240. β = 0.1 is a common choice; the authors'
    script for HH has 0.03.

    Args:
        beta: inverse temperature.

    >>> from lit_align.objectives.examples import worked_pair
    >>> forward_kl_dpo(beta=0.1)(worked_pair()).loss  # -log σ(0.1 · (e^2 - e^-5))
    tensor([0.3907])
    """
    return PreferenceObjective(Logistic(beta), divergence=ForwardKL())


@preset(Group.DIVERGENCE, "between `dpo` and `forward_kl_dpo`; bounded above, so wins saturate")
def jensen_shannon_dpo(beta: float = 0.1) -> PreferenceObjective:
    """``-log σ(β (log σ(r_w) - log σ(r_l)))``: DPO between covering the reference and seeking its modes.

    Parts: Logistic, JensenShannon. Paper: Wang et al. 2023, arXiv:2309.16240. β = 0.1 is a common choice; the authors'
    script for HH has 0.3.

    Args:
        beta: inverse temperature.

    >>> from lit_align.objectives.examples import worked_pair
    >>> jensen_shannon_dpo(beta=0.1)(worked_pair()).loss  # -log σ(0.1 · (2.1269 - 0.0067))
    tensor([0.5927])
    """
    return PreferenceObjective(Logistic(beta), divergence=JensenShannon())


@preset(Group.DIVERGENCE, "to move between `dpo` and `forward_kl_dpo` by a number")
def alpha_divergence_dpo(beta: float = 0.1, alpha: float = 0.5) -> PreferenceObjective:
    """``-log σ(β (e^{-α r_l} - e^{-α r_w}) / α)``: DPO with the α-divergence, from `dpo` (0) to `forward_kl_dpo` (1).

    Parts: Logistic, Alpha(1 - α). Paper: Wang et al. 2023, arXiv:2309.16240, whose α this is. The authors' scripts
    for HH take α from {0.3, 0.5, 0.7}, and with 0.5 a β of 0.1 or 0.3.

    Args:
        beta: inverse temperature.
        alpha: order of the divergence as in the paper, 0 < alpha < 1.

    >>> from lit_align.objectives.examples import worked_pair
    >>> alpha_divergence_dpo(beta=0.1, alpha=0.5)(worked_pair()).loss  # -log σ(0.2 · (e^1 - e^-2.5))
    tensor([0.4639])
    """
    return PreferenceObjective(Logistic(beta), divergence=Alpha(1 - alpha))
