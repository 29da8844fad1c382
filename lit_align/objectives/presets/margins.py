"""Presets that compare the two responses of a pair by their margin.

Every example computes the loss of the worked pair (`lit_align.objectives.examples`): margin 7 nats with sums over 10
and 40 tokens, 0.55 with means; 3 and 0.3 under the quality prompt.
"""

from __future__ import annotations

from lit_align.objectives.averaging import Mean
from lit_align.objectives.base import MARGIN
from lit_align.objectives.contrast import Hinge, Logistic, LogisticExponential, ReverseLogistic, Robust, Square
from lit_align.objectives.papers import CDPO, ODPO, RSO, cite
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.refinement import LostLikelihood, RejectedShare, SelfRefine
from lit_align.objectives.regularizer import ClampedKL, ConditionalMatching, Entropy


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


@preset(Group.LENGTH, "lengths differ much and responses should count alike; margins are per token, so β is larger")
def averaged_dpo(beta: float = 5.0) -> PreferenceObjective:
    """``-log σ(β m̄)``: DPO on log-ratios averaged over the tokens of each response.

    Elsewhere ``dpo_norm``, ``sigmoid_norm`` or length-normalised DPO.

    Averaging shrinks margins by about the length, and β grows in return: at equal lengths L it is ``dpo(beta / L)``.
    Published runs use 2 to 10; the default is the value of open-instruct and Tülu 3.

    Parts: Logistic, Mean. Paper: Grinsztajn et al. 2024, arXiv:2406.19188.

    Args:
        beta: inverse temperature, tokens / nats.

    >>> from lit_align.objectives.examples import worked_pair
    >>> averaged_dpo(beta=2.0)(worked_pair()).loss  # -log σ(2 · 0.55)
    tensor([0.2873])
    """
    return PreferenceObjective(Logistic(beta), averaging=Mean())


@preset(Group.LENGTH, "IPO in the form that its authors recommend")
def ipo(beta: float = 5.0) -> PreferenceObjective:
    """``(m̄ - 1 / (2 β))²`` with averaged log-ratios: IPO as its authors ran it.

    The paper prints summed log-ratios (`ipo_sum`); its authors report that averaging them is what works. β has the
    scale of means: the default asks for a tenth of a nat per token. TRL's 0.1 asks for 5 nats per token, far beyond
    what a policy reaches, so that every pair is pushed on as hard as at the start.

    Parts: Square, Mean. Paper: Azar et al. 2023, arXiv:2310.12036, Eq. 17, where β is called τ.

    Args:
        beta: inverse temperature, tokens / nats; the target is 1 / (2 beta) nats per token.

    >>> from lit_align.objectives.examples import worked_pair
    >>> ipo(beta=0.5)(worked_pair()).loss  # (0.55 - 1)²
    tensor([0.2025])
    """
    return PreferenceObjective(Square(beta), averaging=Mean())


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


@preset(Group.LENGTH, "`ipo`, by the name of the averaging paper")
def averaged_ipo(beta: float = 5.0) -> PreferenceObjective:
    """``(m̄ - 1 / (2 β))²``: IPO under the averaging operator, the same function as `ipo`.

    At equal lengths L it is ``ipo_sum(beta / L) / L²``; β has the scale of means, as in `averaged_dpo`.

    Parts: Square, Mean. Paper: Grinsztajn et al. 2024, arXiv:2406.19188.

    Args:
        beta: inverse temperature, tokens / nats; the target is 1 / (2 beta) nats per token.

    >>> averaged_ipo(beta=0.5) == ipo(beta=0.5)
    True
    """
    return ipo(beta)


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


@preset(Group.SELF_REFINEMENT, "the policy, asked for quality, tells good from bad; costs one more forward pass")
def sr_dpo(beta: float = 0.1, strength: float = 0.5) -> PreferenceObjective:
    """``-log σ(β m - λ sg[β m_p])``: DPO that asks more of pairs which the prompted model tells apart.

    With an empty quality prompt m_p is m, which is the paper's naive baseline.

    Parts: Logistic, SelfRefine(λ). Paper: Yu et al. 2024, arXiv:2405.21040, which uses β = 0.1 and λ from
    {0.1, 0.3, 0.5, 1}.

    Args:
        beta: inverse temperature, 1 / nats.
        strength: λ, the share of the prompted margin that is asked for.

    >>> from lit_align.objectives.examples import worked_pair
    >>> sr_dpo(beta=0.1, strength=0.5)(worked_pair()).loss  # -log σ(0.7 - 0.5 · 0.3)
    tensor([0.4555])
    """
    return PreferenceObjective(Logistic(beta), refinement=SelfRefine(strength))


@preset(Group.SELF_REFINEMENT, "the same with the target of IPO; as printed λ is small, see its docstring")
def sr_ipo(beta: float = 0.1, strength: float = 0.5, derived: bool = False) -> PreferenceObjective:
    """``(m - λ sg[β m_p] - 1 / (2 β))²`` with summed log-ratios: self-refined IPO as printed.

    The paper's refinement ``Δ = β m_p`` keeps its β here, although m has none. Deriving the loss from its own
    optimality condition gives ``λ m_p``, which at β = 0.1 is ten times as much.

    Parts: Square, SelfRefine(λ β), or SelfRefine(λ) if derived. Paper: Yu et al. 2024, arXiv:2405.21040.

    Args:
        beta: inverse temperature, 1 / nats; the target is 1 / (2 beta) nats.
        strength: λ as printed.
        derived: refine by ``λ m_p``, as derived, and not by ``λ β m_p``, as printed.

    >>> from lit_align.objectives.examples import worked_pair
    >>> sr_ipo(beta=0.1, strength=0.5)(worked_pair()).loss  # (7 - 0.5 · 0.3 - 5)²
    tensor([3.4225])
    >>> sr_ipo(beta=0.1, strength=0.5, derived=True)(worked_pair()).loss  # (7 - 0.5 · 3 - 5)²
    tensor([0.2500])
    """
    return PreferenceObjective(Square(beta), refinement=SelfRefine(strength if derived else strength * beta))


@preset(Group.MATCHING, "answers should be as diverse as preferences are; best with short responses")
def direct_preference_matching(beta: float = 1.0) -> PreferenceObjective:
    """``-log σ(β m)`` on summed log-probabilities, without a reference.

    Its optimum is ``π ∝ exp(r / β)``; at the default β = 1 the policy answers in the proportions in which responses
    are preferred. This is the offline counterpart of the paper's method, which is online; it follows by solving the
    same regularised problem for the reward.

    Parts: Logistic, Entropy. Paper: Xiao et al. 2024, arXiv:2405.16455.

    Args:
        beta: inverse temperature, 1 / nats; 1 matches preferences exactly.

    >>> from lit_align.objectives.examples import worked_pair
    >>> direct_preference_matching(beta=0.01)(worked_pair()).loss  # -log σ(0.01 · (-20 + 60))
    tensor([0.5130])
    """
    return PreferenceObjective(Logistic(beta), regularizer=Entropy())


@preset(Group.MATCHING, "the same, where the reference should still rule out unlikely tokens")
def direct_conditional_preference_matching(beta: float = 1.0, alpha: float = 0.1) -> PreferenceObjective:
    """``-log σ(β m)``, the reference speaking only on tokens that it finds no likelier than α.

    The offline counterpart of conditional preference matching, derived as `direct_preference_matching` is. The
    paper's runs use α from {0.1, 0.3, 0.5} and β from {0.1, 0.5, 1}.

    Parts: Logistic, ConditionalMatching. Paper: Xiao et al. 2024, arXiv:2405.16455.

    Args:
        beta: inverse temperature, 1 / nats; 1 matches preferences on tokens that the reference supports.
        alpha: probability above which the reference is ignored, 0 < alpha < 1.

    >>> from lit_align.objectives.examples import worked_pair
    >>> objective = direct_conditional_preference_matching(beta=0.01, alpha=0.1)
    >>> objective(worked_pair()).loss  # log 0.1 = -2.30: ignored at -1.45, not at -2.5; m = 5 + 60
    tensor([0.4201])
    """
    return PreferenceObjective(Logistic(beta), regularizer=ConditionalMatching(alpha))
