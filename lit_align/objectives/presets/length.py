"""Presets in which the length of a response does not count, or counts less.

Every example computes the loss of the worked pair (`lit_align.objectives.examples`): log-probabilities of -20 over 10
tokens and of -60 over 40, log-ratios of 5 and -2; by means the margin is 0.55.
"""

from __future__ import annotations

from lit_align.objectives.averaging import DownSampled, LowConfidence, Mean, SharedLength
from lit_align.objectives.contrast import Logistic, Square
from lit_align.objectives.divergence import Alpha
from lit_align.objectives.papers import ALPHA_PO, cite
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.refinement import LengthGap, TargetMargin
from lit_align.objectives.regularizer import Entropy


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


@preset(Group.LENGTH, "no room or time for a reference; watch for drift, nothing holds the policy back")
def simpo(beta: float = 2.0, gamma: float = 1.0) -> PreferenceObjective:
    """``-log σ(β m̄ - γ)`` on averaged log-probabilities, without a reference.

    The defaults are the authors' for Llama-3-8B; half of β is also the γ from which they advise to tune. Their other
    runs have β = 2 and γ = 1.6 (Mistral-7B), 2.5 and 0.25 (Mistral-Instruct), 2.5 and 1.375 (Llama-3-Instruct).

    Parts: Logistic, Mean, TargetMargin(γ / β), Entropy. Paper: Meng et al. 2024, arXiv:2405.14734, Eq. 6.

    Args:
        beta: inverse temperature, tokens / nats.
        gamma: target margin as it stands inside the sigmoid, after β.

    >>> from lit_align.objectives.examples import worked_pair
    >>> simpo(beta=2.0, gamma=1.0)(worked_pair()).loss  # -log σ(2 · (-2 + 1.5) - 1)
    tensor([2.1269])
    """
    return PreferenceObjective(
        Logistic(beta), averaging=Mean(), refinement=TargetMargin(gamma / beta), regularizer=Entropy()
    )


@preset(Group.LENGTH, "`simpo` lowers the likelihood of chosen responses too far")
def alpha_po(beta: float = 2.5, gamma: float = 0.1, alpha: float = 0.25) -> PreferenceObjective:
    """``-log σ(β (h_w - h_l) - γ)`` with ``h = (1 - e^{-α lp̄}) / α``: SimPO with a bent reward.

    α → 0 is SimPO. A positive α makes likelihood that is lost count more than likelihood that is gained, which holds
    the chosen response back from becoming less likely.

    Parts: Logistic, Mean, Alpha(1 - α), TargetMargin(γ / β), Entropy. Paper: Gupta et al. 2025, arXiv:2501.03884; the
    defaults are its values for Mistral-Instruct, Table 3, as TRL's index of papers quotes them.

    Args:
        beta: inverse temperature, tokens / nats.
        gamma: target margin as it stands inside the sigmoid, after β.
        alpha: shape of the reward, 0 < alpha < 1.

    >>> from lit_align.objectives.examples import worked_pair
    >>> alpha_po(beta=2.0, gamma=1.0, alpha=0.5)(worked_pair()).loss  # h = 2 (1 - e), 2 (1 - e^0.75); -log σ(-3.4052)
    tensor([3.4378])
    """
    bent = PreferenceObjective(
        Logistic(beta),
        averaging=Mean(),
        refinement=TargetMargin(gamma / beta),
        regularizer=Entropy(),
        divergence=Alpha(1 - alpha),
    )
    return cite(bent, ALPHA_PO)


@preset(Group.LENGTH, "lengths of a pair differ much and part of the long side's surplus should still count")
def ld_dpo(beta: float = 0.1, weight: float = 0.5) -> PreferenceObjective:
    """``-log σ(β m)``, tokens beyond the shorter side's length counting less.

    The paper tunes the weight for each model; the default is the middle of its range.

    Parts: Logistic, SharedLength. Paper: Liu et al. 2024, arXiv:2409.06411.

    Args:
        beta: inverse temperature, 1 / nats.
        weight: the paper's α, from 0 (only the shared length counts) to 1 (DPO).

    >>> from lit_align.objectives.examples import worked_pair
    >>> ld_dpo(beta=0.1, weight=0.5)(worked_pair()).loss  # m = 5 + 0.05 · (10 + 0.5 · 30) = 6.25
    tensor([0.4287])
    """
    return PreferenceObjective(Logistic(beta), averaging=SharedLength(weight))


@preset(Group.LENGTH, "raters liked length, and you want a knob against it in plain DPO")
def r_dpo(beta: float = 0.1, alpha: float = 0.01) -> PreferenceObjective:
    """``-log σ(β m + α (n_w - n_l))``: DPO for a reward that pays for length, which the policy need not learn.

    The paper tunes α for each data set; the default moves the logit by 1 for a difference of 100 tokens.

    Parts: Logistic, LengthGap(α / β). Paper: Park et al. 2024, arXiv:2403.19159.

    Args:
        beta: inverse temperature, 1 / nats.
        alpha: weight of a token of difference in length, inside the sigmoid.

    >>> from lit_align.objectives.examples import worked_pair
    >>> r_dpo(beta=0.1, alpha=0.01)(worked_pair()).loss  # -log σ(0.7 + 0.01 · (10 - 40))
    tensor([0.5130])
    """
    return PreferenceObjective(Logistic(beta), refinement=LengthGap(alpha / beta))


@preset(Group.LENGTH, "lengths of a pair differ much and only equal numbers of tokens should be compared")
def sampo(beta: float = 0.1) -> PreferenceObjective:
    """``-log σ(β m)``, m summed over as many tokens of either side as the shorter one has, sampled anew each time.

    Parts: Logistic, DownSampled. Paper: Lu et al. 2024, arXiv:2406.10957; the authors' script has β = 0.1, and 0.5 for
    Pythia-2.8B.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> from dataclasses import replace
    >>> import torch
    >>> from lit_align.objectives.examples import worked_pair
    >>> seeded = replace(worked_pair(), pair_seed=torch.tensor([1]))
    >>> sampo(beta=0.1)(seeded).loss  # 10 of 10 and of 40 tokens, all alike: m = 5 + 10 · 0.05
    tensor([0.4555])
    """
    return PreferenceObjective(Logistic(beta), averaging=DownSampled())


@preset(Group.LENGTH, "`simpo` moves tokens that the policy is sure of anyway")
def confpo(beta: float = 1.5, gamma: float = 1.6) -> PreferenceObjective:
    """``-log σ(β m̄ - γ)`` on log-probabilities averaged over the tokens that the policy is not sure of.

    Parts: Logistic, LowConfidence, TargetMargin(γ / β), Entropy. Paper: Yoon et al. 2025, arXiv:2506.08712; the
    defaults are those of the authors' script for Mistral-7B.

    Args:
        beta: inverse temperature, tokens / nats.
        gamma: target margin as it stands inside the sigmoid, after β.

    >>> from lit_align.objectives.examples import worked_pair
    >>> confpo(beta=2.0, gamma=1.0)(worked_pair()).loss  # all tokens of a response are alike: as SimPO
    tensor([2.1269])
    """
    return PreferenceObjective(
        Logistic(beta), averaging=LowConfidence(), refinement=TargetMargin(gamma / beta), regularizer=Entropy()
    )
