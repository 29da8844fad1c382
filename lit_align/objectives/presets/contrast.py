"""Presets that compare the sums of the two responses' log-ratios: DPO and other contrasts.

Every example computes the loss of the worked pair (`lit_align.objectives.examples`): log-ratios of 5 and -2, so that
the margin is 7 nats.
"""

from __future__ import annotations

from lit_align.objectives.base import MARGIN
from lit_align.objectives.contrast import Hinge, Logistic, LogisticExponential, ReverseLogistic, Robust, Square
from lit_align.objectives.papers import CDPO, ODPO, RSO, cite
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.refinement import LostLikelihood, RejectedShare
from lit_align.objectives.regularizer import ClampedKL


@preset(Group.CONTRAST, "the place to start, and what everything else is compared with")
def dpo(beta: float = 0.1) -> PreferenceObjective:
    """``-log σ(β m)`` with summed log-ratios.

    Parts: Logistic. Paper: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7, whose runs use β = 0.1, and 0.5 for TL;DR.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> dpo(beta=0.1)(worked_pair()).loss  # -log σ(0.1 · 7)
    tensor([0.4032])
    """
    return PreferenceObjective(Logistic(beta))


@preset(Group.CONTRAST, "labels are noisy and pairs should not be pushed without limit")
def cdpo(beta: float = 0.1, label_smoothing: float = 0.1) -> PreferenceObjective:
    """``-(1 - ε) log σ(β m) - ε log σ(-β m)``: DPO for preferences of which a share ε is flipped.

    Parts: Logistic. Paper: Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of flipped preferences, 0 ≤ ε < 0.5.

    >>> from lit_align.objectives.examples import worked_pair
    >>> cdpo(beta=0.1, label_smoothing=0.1)(worked_pair()).loss  # 0.4032 + 0.1 · 0.7
    tensor([0.4732])
    """
    return cite(PreferenceObjective(Logistic(beta, label_smoothing)), CDPO)


@preset(Group.CONTRAST, "labels are noisy and you know about how often; single losses may be negative")
def robust_dpo(beta: float = 0.01, label_smoothing: float = 0.1) -> PreferenceObjective:
    """``[-(1 - ε) log σ(β m) + ε log σ(-β m)] / (1 - 2 ε)``: DPO, estimated without bias from flipped preferences.

    Parts: Robust. Paper: Chowdhury et al. 2024, arXiv:2403.00409; the defaults are the paper's values as TRL's index
    of papers quotes them.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of flipped preferences, 0 ≤ ε < 0.5.

    >>> from lit_align.objectives.examples import worked_pair
    >>> robust_dpo(beta=0.1, label_smoothing=0.1)(worked_pair()).loss  # (0.9 · 0.4032 - 0.1 · 1.1032) / 0.8
    tensor([0.3157])
    """
    return PreferenceObjective(Robust(beta, label_smoothing))


@preset(Group.CONTRAST, "the policy should commit to the preferred side; not convex, so start from a good policy")
def exo(beta: float = 0.1, label_smoothing: float = 1e-3) -> PreferenceObjective:
    """``KL((σ(β m), σ(-β m)) ‖ (1 - ε, ε))``: the divergence that DPO minimises, taken the other way round.

    Parts: ReverseLogistic. Paper: Ji et al. 2024, arXiv:2402.00856, for pairs. The authors' scripts use β = 0.1 on
    IMDb and 0.5 on TL;DR and HH, and log ε = -10; ε = 0.001 is the paper's value as TRL quotes it.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of flipped preferences, 0 < ε < 0.5.

    >>> from lit_align.objectives.examples import worked_pair
    >>> exo(beta=0.1, label_smoothing=0.1)(worked_pair()).loss  # .668 (log .668 - log .9) + .332 (log .332 - log .1)
    tensor([0.1990])
    """
    return PreferenceObjective(ReverseLogistic(beta, label_smoothing))


@preset(Group.CONTRAST, "to reproduce the paper; β is delicate")
def discopop(beta: float = 0.05, tau: float = 0.05) -> PreferenceObjective:
    """``-log σ(z) (1 - σ(z / τ)) + e^{-z} σ(z / τ)`` with z = β m: the loss that a language model proposed.

    Parts: LogisticExponential. Paper: Lu et al. 2024, arXiv:2406.08414, Eq. 5; the defaults are the paper's values as
    TRL's index of papers quotes them.

    Args:
        beta: inverse temperature, 1 / nats.
        tau: width of the passage from the logistic to the exponential loss, 0 < τ ≤ 1.

    >>> from lit_align.objectives.examples import worked_pair
    >>> discopop(beta=0.1)(worked_pair()).loss  # won by 14 τ: e^-0.7
    tensor([0.4966])
    """
    return PreferenceObjective(LogisticExponential(beta, tau))


@preset(Group.CONTRAST, "labels are nearly sure, so that DPO would push margins to infinity")
def ipo_sum(beta: float = 0.1) -> PreferenceObjective:
    """``(m - 1 / (2 β))²`` with summed log-ratios: IPO as printed.

    Parts: Square. Paper: Azar et al. 2023, arXiv:2310.12036, Eq. 17, where β is called τ.

    Args:
        beta: inverse temperature, 1 / nats; the target is 1 / (2 beta) nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> ipo_sum(beta=0.1)(worked_pair()).loss  # (7 - 5)²
    tensor([4.0000])
    """
    return PreferenceObjective(Square(beta))


@preset(Group.CONTRAST, "pairs that are clearly won should be left alone")
def slic(beta: float = 0.1) -> PreferenceObjective:
    """``max(0, 1 - β m)``: the loss is 0 for pairs that are won by 1 / β nats.

    The hinge of SLiC-HF on log-ratios, which is what tools call ``hinge`` and RSO "hinge-norm": the same function as
    `rso`. SLiC-HF as printed, on log-probabilities and with a likelihood beside it, is `slic_hf`.

    Parts: Hinge. Papers: Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> slic(beta=0.1)(worked_pair()).loss  # 1 - 0.7
    tensor([0.3000])
    """
    return cite(PreferenceObjective(Hinge(beta)), RSO)


@preset(Group.CONTRAST, "as `slic`: the same function under the name of the paper that puts it on log-ratios")
def rso(beta: float = 0.1) -> PreferenceObjective:
    """``max(0, 1 - β m)``: the loss "hinge-norm" of RSO, on whatever pairs the data holds.

    The paper's other half, sampling those pairs by rejection, happens before training.

    Parts: Hinge. Papers: Liu et al. 2023, arXiv:2309.06657; Zhao et al. 2023, arXiv:2305.10425.

    Args:
        beta: inverse temperature, 1 / nats; the paper's γ.

    >>> rso(beta=0.3) == slic(beta=0.3)
    True
    """
    return slic(beta)


@preset(Group.CONTRAST, "the data says by how much a pair is won")
def odpo(beta: float = 0.1) -> PreferenceObjective:
    """``-log σ(β m - margin)``: DPO that asks more of pairs which the data says are won by more.

    The column ``margin`` holds the offset as the paper's Δ = α log(score_w - score_l), or whatever the data prefers,
    in the unit of rewards; data without it is refused. Every objective with a margin honours the column, this one
    depends on it.

    Parts: Logistic, requires ``margin``. Paper: Amini et al. 2024, arXiv:2402.10571; the authors' code has α = 1 and
    leaves β to the user, for whom 0.1 is a common choice.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from dataclasses import replace
    >>> import torch
    >>> from lit_align.objectives.examples import worked_pair
    >>> odpo(beta=0.1)(replace(worked_pair(), margin=torch.tensor([0.5]))).loss  # -log σ(0.7 - 0.5)
    tensor([0.5981])
    """
    return cite(PreferenceObjective(Logistic(beta), requires=(MARGIN,)), ODPO)


@preset(Group.CONTRAST, "both sides of a pair are nearly the same, or chosen responses lose likelihood under DPO")
def dpo_positive(beta: float = 0.3, strength: float = 50.0) -> PreferenceObjective:
    """``-log σ(β (m - λ max(0, -r_w)))``: DPO in which the chosen response must not fall below the reference.

    Parts: Logistic, LostLikelihood(λ). Paper: Pal et al. 2024, arXiv:2402.13228; β = 0.3 and λ = 50 are its
    values as other implementations quote them.

    Args:
        beta: inverse temperature, 1 / nats.
        strength: λ, how many nats of margin a nat costs that the chosen response lost.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> dpo_positive(beta=0.1)(worked_pair()).loss  # r_w = 5: nothing was lost
    tensor([0.4032])
    >>> pair = worked_pair()
    >>> fallen = replace(pair, reference=pair.reference + 0.6 * pair.mask)  # r_w = 5 - 6, r_l = -2 - 24
    >>> dpo_positive(beta=0.1, strength=20.0)(fallen).loss  # -log σ(0.1 · (25 - 20 · 1))
    tensor([0.4741])
    """
    return PreferenceObjective(Logistic(beta), refinement=LostLikelihood(strength))


@preset(Group.CONTRAST, "chosen responses lose likelihood under DPO, and a smaller margin is a price worth paying")
def dpo_shift(beta: float = 0.1, share: float = 0.75) -> PreferenceObjective:
    """``-log σ(β (r_w - f r_l))``: DPO in which the rejected response counts less.

    Parts: Logistic, RejectedShare(1 - f). Paper: Yang et al. 2025, arXiv:2502.07599, with f(λ) fixed; the
    authors also move it from 0.5 to 1, or back, during a run, which has no counterpart here. 0.75 is the middle.

    Args:
        beta: inverse temperature, 1 / nats.
        share: f(λ), what a nat of the rejected log-ratio counts, above 0 and at most 1; 1 is DPO.

    >>> from lit_align.objectives.examples import worked_pair
    >>> dpo_shift()(worked_pair()).loss  # -log σ(0.1 · (5 + 0.75 · 2))
    tensor([0.4201])
    """
    return PreferenceObjective(Logistic(beta), refinement=RejectedShare(1 - share))


@preset(Group.CONTRAST, "single tokens dominate log-ratios; made for a reference that follows the policy")
def humanline_dpo(beta: float = 0.1, low: float = -1.5, high: float = 1.5) -> PreferenceObjective:
    """``-log σ(β m)`` with the log-ratio of each token clamped.

    Parts: Logistic, ClampedKL. Paper: Liu et al. 2025, arXiv:2509.24207, whose reference follows the policy:
    `MovingReference`. The limits are tuned there; the defaults are a place to start.

    Args:
        beta: inverse temperature, 1 / nats.
        low: the least log-ratio of a token that counts, in nats, 0 or less; the paper's log ε_P.
        high: the largest, 0 or more; the paper's log ε_R.

    >>> from lit_align.objectives.examples import worked_pair
    >>> humanline_dpo(beta=0.1, low=-0.04, high=0.3)(worked_pair()).loss  # -log σ(0.1 · (10 · 0.3 + 40 · 0.04))
    tensor([0.4894])
    """
    return PreferenceObjective(Logistic(beta), regularizer=ClampedKL(low, high))
