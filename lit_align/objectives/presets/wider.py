"""Presets that look beyond a pair: at other pairs of the step, or at what else the policy would write."""

from __future__ import annotations

from lit_align.objectives.batch_level import RankedMargins, RankedResponses
from lit_align.objectives.combine import OnPolicy, Reweighted
from lit_align.objectives.contrast import Logistic
from lit_align.objectives.dynamic_beta import DynamicBeta
from lit_align.objectives.presets.contrast import dpo
from lit_align.objectives.presets.registry import Group, preset


@preset(Group.WIDER, "a few pairs go badly wrong while the average looks fine; needs large steps")
def aot(beta: float = 0.1, label_smoothing: float = 0.0) -> RankedMargins:
    """``-log σ(β (m_(k) - m_ref(k)))``: DPO between the sorted margins of the policy and those of the reference.

    Parts: RankedMargins, Logistic. Paper: Melnyk et al. 2024, arXiv:2406.05882, for paired data.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε of `cdpo`, which TRL offers here as well, 0 ≤ ε < 0.5.

    >>> from lit_align.objectives.examples import worked_pair
    >>> aot(beta=0.1)(worked_pair()).loss  # one pair has one rank: -log σ(0.1 · (40 - 33))
    tensor([0.4032])
    """
    return RankedMargins(Logistic(beta, label_smoothing))


@preset(Group.WIDER, "as `aot`, and chosen and rejected responses do not belong to the same prompts")
def aot_unpaired(beta: float = 0.1, label_smoothing: float = 0.0) -> RankedResponses:
    """``-log σ(β (r_w(k) - r_l(k)))``: DPO between the sorted chosen log-ratios and the sorted rejected ones.

    Parts: RankedResponses, Logistic. Paper: Melnyk et al. 2024, arXiv:2406.05882, for unpaired data. A step still
    needs as many chosen as rejected responses, so rows hold both; they need not answer alike.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε of `cdpo`, which TRL offers here as well, 0 ≤ ε < 0.5.

    >>> from lit_align.objectives.examples import worked_pair
    >>> aot_unpaired(beta=0.1)(worked_pair()).loss  # -log σ(0.1 · (5 + 2))
    tensor([0.4032])
    """
    return RankedResponses(Logistic(beta, label_smoothing))


@preset(Group.WIDER, "pairs were written by other models, and those the policy might write should count more")
def wpo(beta: float = 0.01) -> Reweighted:
    """``-w log σ(β m)``: DPO in which a pair counts as much as the policy would have written it.

    Parts: `dpo`, OnPolicy. Paper: Zhou et al. 2024, arXiv:2406.11827, Eq. 2; β = 0.01 is the value in the
    authors' configurations.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> wpo(beta=0.1)(replace(pair, collision=pair.mask * -1.25)).loss  # e^(-0.75 - 0.25) · 0.4032
    tensor([0.1483])
    """
    return Reweighted(dpo(beta), OnPolicy())


@preset(Group.WIDER, "β is hard to choose and pairs differ in quality; needs large steps")
def beta_dpo(beta: float = 0.1, sensitivity: float = 0.6, dropped: float = 0.2) -> DynamicBeta:
    """``-log σ(β' m)`` with ``β' = β (1 + a (mean m - M))``, without the pairs whose margins are unusual.

    Parts: DynamicBeta, `dpo`. Paper: Wu et al. 2024, arXiv:2407.08639; the defaults are those of the authors' example.

    Args:
        beta: inverse temperature at a usual mean margin, 1 / nats.
        sensitivity: the paper's α, the change of β / β per nat of mean margin, 0 or more.
        dropped: share of a step's pairs that is left out, in [0, 1); the paper's ρ.

    >>> from dataclasses import replace
    >>> import torch
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = replace(worked_pair(), pair_seed=torch.tensor([1]))
    >>> beta_dpo(beta=0.1, sensitivity=0.0)(pair).loss  # of one pair at a fixed β it is DPO
    tensor([0.4032])
    """
    return DynamicBeta(dpo(beta), sensitivity, dropped)
