"""Presets that judge each response by itself, on the log-ratios 5 and -2 of the worked pair."""

from __future__ import annotations

from lit_align.objectives.averaging import Mean
from lit_align.objectives.pointwise import (
    AnchoredApart,
    AnchoredDown,
    BinaryLogistic,
    InversePerplexity,
    NoiseContrast,
    SquareTargets,
)
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.regularizer import Entropy
from lit_align.objectives.response import MismatchedMean, ResponseObjective, RunningMean


@preset(Group.RESPONSE, "chosen responses lose likelihood under DPO and should gain it")
def nca(beta: float = 0.01) -> ResponseObjective:
    """``-log σ(β r_w) - ½ log σ(-β r_w) - ½ log σ(-β r_l)``: raises the chosen likelihood itself, not the margin only.

    Parts: NoiseContrast. Paper: Chen et al. 2024, arXiv:2402.05369, for pairs, where β is called α; 0.01 is the
    value in the authors' configuration.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> nca(beta=0.1)(worked_pair()).loss  # 0.4741 + ½ 0.9741 + ½ 0.5981
    tensor([1.2602])
    """
    return ResponseObjective(NoiseContrast(beta))


@preset(Group.RESPONSE, "good and bad responses without pairs; a classifier around their running mean")
def bco(beta: float = 0.01) -> ResponseObjective:
    """``-log σ(β r_w - δ) - log σ(-(β r_l - δ))``: a classifier of responses, paired or not, around their mean reward.

    δ is β times the mean log-ratio of all responses of the earlier steps, 0 at first (`RunningMean`).

    Parts: BinaryLogistic, RunningMean. Paper: Jung et al. 2024, arXiv:2404.04656; β = 0.01 is its value
    as TRL's index of papers quotes it.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from dataclasses import replace
    >>> import torch
    >>> from lit_align.objectives.examples import worked_pair
    >>> later = replace(worked_pair(), state={"anchor": torch.tensor(3.0), "steps": torch.tensor(1.0)})
    >>> bco(beta=0.1)(later).loss  # -log σ(0.5 - 0.3) - log σ(0.2 + 0.3)
    tensor([1.0722])
    """
    return ResponseObjective(BinaryLogistic(beta), anchor=RunningMean())


@preset(Group.RESPONSE, "`bco` without state, or to reproduce TRL's `bco_pair`")
def bco_unshifted(beta: float = 0.01) -> ResponseObjective:
    """``-log σ(β r_w) - log σ(-β r_l)``: `bco` with its boundary at 0, which is TRL's ``bco_pair``.

    Parts: BinaryLogistic. Paper: Jung et al. 2024, arXiv:2404.04656, without its reward shift.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> bco_unshifted(beta=0.1)(worked_pair()).loss  # -log σ(0.5) - log σ(0.2)
    tensor([1.0722])
    """
    return ResponseObjective(BinaryLogistic(beta))


@preset(Group.RESPONSE, "rounds of self-play on the policy's own responses")
def sppo(beta: float = 0.001) -> ResponseObjective:
    """``(r_w - 1 / (2 β))² + (r_l + 1 / (2 β))²``: self-play with hard labels, one iteration of it.

    The default is the authors' η = 1000; it asks for 500 nats a side, so it says in which direction and how fast
    rather than where to.

    Parts: SquareTargets. Paper: Wu et al. 2024, arXiv:2405.00675, where 1 / β is called η. The authors'
    code halves the sum of the two squares; TRL does not.

    Args:
        beta: inverse temperature, 1 / nats; the targets are ± 1 / (2 beta) nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> sppo(beta=0.1)(worked_pair()).loss  # (5 - 5)² + (-2 + 5)²
    tensor([9.0000])
    """
    return ResponseObjective(SquareTargets(beta))


@preset(Group.RESPONSE, "chosen responses are better than what the policy writes")
def apo_zero(beta: float = 0.1) -> ResponseObjective:
    """``1 - σ(β r_w) + σ(β r_l)``: chosen up, rejected down, for data better than what the policy writes.

    Rows may be unpaired, then this is what TRL calls ``apo_zero_unpaired``.

    Parts: AnchoredApart. Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7; β = 0.1 is its value as
    TRL's index of papers quotes it.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> apo_zero(beta=0.1)(worked_pair()).loss  # σ(-0.5) + σ(-0.2)
    tensor([0.8277])
    """
    return ResponseObjective(AnchoredApart(beta))


@preset(Group.RESPONSE, "chosen responses are worse than what the policy writes, but better than the rejected ones")
def apo_down(beta: float = 0.1) -> ResponseObjective:
    """``σ(β r_w) + 1 - σ(β (r_w - r_l))``: both down, rejected further, for data worse than what the policy writes.

    Parts: AnchoredDown. Paper: D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8; β = 0.1 is its value as TRL's
    index of papers quotes it.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> apo_down(beta=0.1)(worked_pair()).loss  # σ(0.5) + σ(-0.7)
    tensor([0.9543])
    """
    return ResponseObjective(AnchoredDown(beta))


@preset(Group.RESPONSE, "no reference and nothing to tune")
def simper() -> ResponseObjective:
    """``1 - e^{lp̄_w} + e^{lp̄_l}``: inverse perplexities, without a reference and without a hyperparameter.

    Parts: InversePerplexity, Mean, Entropy. Paper: Xiao et al. 2025, arXiv:2502.00883, whose loss is less by 1.

    >>> from lit_align.objectives.examples import worked_pair
    >>> simper()(worked_pair()).loss  # 1 - e^-2 + e^-1.5
    tensor([1.0878])
    """
    return ResponseObjective(InversePerplexity(), averaging=Mean(), regularizer=Entropy())


@preset(Group.RESPONSE, "good and bad responses without pairs, or many more of one kind")
def kto(beta: float = 0.1, chosen_weight: float = 1.0, rejected_weight: float = 1.0) -> ResponseObjective:
    """``λ_w (1 - σ(β (r_w - z))) + λ_l (1 - σ(β (z - r_l)))``: each response against what is usual, paired or not.

    z is the mean log-ratio of responses to other prompts, 0 or more and without gradient (`MismatchedMean`). A pair's
    loss is the sum of its sides', an unpaired row's that of its one side: the mean over n pairs is twice what the
    paper's loss is on the same 2 n responses as single rows. With far more rows of one kind, raise the weight of the
    other; the authors advise a ratio of 1 to 4 / 3 between weight times count of the two kinds.

    Parts: AnchoredApart, MismatchedMean. Paper: Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 7; β = 0.1 and weights
    of 1 are those of the authors' configuration.

    Args:
        beta: inverse temperature, 1 / nats.
        chosen_weight: the paper's λ_D.
        rejected_weight: the paper's λ_U.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = replace(worked_pair(), mismatched=worked_pair())  # z = (5 - 2) / 2
    >>> kto(beta=0.1)(pair).loss  # σ(-0.35) + σ(-0.35)
    tensor([0.8268])
    """
    return ResponseObjective(AnchoredApart(beta, chosen_weight, rejected_weight), anchor=MismatchedMean())
