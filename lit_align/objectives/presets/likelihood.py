"""Presets with several terms: a preference beside the likelihood of the chosen response, 2 nats a token in examples.

The likelihood is averaged over the tokens of each response, one response one vote, also where a paper's code takes
all tokens of a batch alike; rewards and margins are those of the preference.
"""

from __future__ import annotations

from lit_align.objectives.averaging import Sum
from lit_align.objectives.combine import Term, WeightedSum
from lit_align.objectives.contrast import Hinge
from lit_align.objectives.likelihood import SFT
from lit_align.objectives.odds import OddsRatio
from lit_align.objectives.papers import CPO, CPO_SIMPO, MPO, RPO, cite
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.contrast import dpo
from lit_align.objectives.presets.length import simpo
from lit_align.objectives.presets.matching import direct_preference_matching
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.presets.response import bco
from lit_align.objectives.regularizer import Entropy


@preset(Group.LIKELIHOOD, "alignment in the same run as fine-tuning, from a base model, without a reference")
def orpo(strength: float = 0.1) -> WeightedSum:
    """``NLL - λ log σ(o_w - o_l)`` with the log-odds of averaged log-probabilities, without a reference.

    Parts: λ OddsRatio + SFT. Paper: Hong et al. 2024, arXiv:2403.07691, Eq. 6; the authors' scripts use
    λ = 0.1 for Mistral 7B on UltraFeedback (the default) and 0.05 on Capybara.

    Args:
        strength: λ, the weight of the odds ratio.

    >>> from lit_align.objectives.examples import worked_pair
    >>> orpo(strength=0.1)(worked_pair()).loss  # 2 + 0.1 · 1.0421
    tensor([2.1042])
    """
    return WeightedSum((Term("odds_ratio", OddsRatio(), strength), Term("likelihood", SFT())))


@preset(Group.LIKELIHOOD, "translation and other tasks with near-perfect chosen responses, without a reference")
def cpo(beta: float = 0.1, strength: float = 1.0) -> WeightedSum:
    """``-log σ(β m) + λ NLL`` with summed log-probabilities, without a reference.

    Parts: `direct_preference_matching` + λ SFT: the first term is the same function, at a β far from matching. Paper:
    Xu et al. 2024, arXiv:2401.08417, where λ is 1; the authors' script has β = 0.1.

    Args:
        beta: inverse temperature, 1 / nats.
        strength: λ, the weight of the likelihood.

    >>> from lit_align.objectives.examples import worked_pair
    >>> cpo(beta=0.1)(worked_pair()).loss  # -log σ(0.1 · (-20 + 60)) + 2
    tensor([2.0181])
    """
    terms = (Term("preference", direct_preference_matching(beta)), Term("likelihood", SFT(), strength))
    return cite(WeightedSum(terms), CPO)


@preset(Group.LIKELIHOOD, "`simpo` needs an anchor and there is no reference")
def cpo_simpo(beta: float = 10.0, gamma: float = 5.4, alpha: float = 0.05) -> WeightedSum:
    """``-log σ(β m̄ - γ) + α NLL`` without a reference: SimPO that is not allowed to let the chosen response go.

    Parts: `simpo` + α SFT. Published as code: Xu 2024, "The joint of CPO and SimPO", which prints the summed
    log-likelihood and runs the mean over tokens, as here; TRL's ``cpo`` with ``loss_type: simpo``. The
    defaults are those of its run, Llama-3-8B-Instruct.

    Args:
        beta: inverse temperature, tokens / nats.
        gamma: target margin as it stands inside the sigmoid, after β.
        alpha: weight of the likelihood.

    >>> from lit_align.objectives.examples import worked_pair
    >>> cpo_simpo(beta=2.0, gamma=1.0, alpha=0.5)(worked_pair()).loss  # 2.1269 + 0.5 · 2
    tensor([3.1269])
    """
    terms = (Term("preference", simpo(beta, gamma)), Term("likelihood", SFT(), alpha))
    return cite(WeightedSum(terms), CPO_SIMPO, CPO)


@preset(Group.LIKELIHOOD, "to reproduce SLiC-HF")
def slic_hf(delta: float = 1.0, strength: float = 0.1) -> WeightedSum:
    """``max(0, δ - m) - λ Σ lp_w`` on summed log-probabilities: SLiC-HF as printed, without a reference.

    The target of its likelihood is the chosen response. The defaults are those of HALOs (``loss=slic``).

    Parts: δ Hinge(1 / δ) with Entropy + λ SFT with Sum. Paper: Zhao et al. 2023, arXiv:2305.10425.

    Args:
        delta: δ, the margin in nats to be won by.
        strength: λ, the weight of the likelihood.

    >>> from lit_align.objectives.examples import worked_pair
    >>> slic_hf(delta=50.0, strength=0.1)(worked_pair()).loss  # 50 - (-20 + 60) + 0.1 · 20
    tensor([12.0000])
    """
    hinge = PreferenceObjective(Hinge(1 / delta), regularizer=Entropy())
    return WeightedSum((Term("preference", hinge, delta), Term("likelihood", SFT(Sum()), strength)))


@preset(Group.LIKELIHOOD, "DPO forgets how to write the chosen response, as in reasoning with verified answers")
def rpo(beta: float = 0.1, alpha: float = 1.0) -> WeightedSum:
    """``-log σ(β m) + α NLL``: DPO that is not allowed to let the chosen response go.

    Parts: `dpo` + α SFT. Paper: Pang et al. 2024, arXiv:2404.19733, for which TRL recommends α = 1; β = 0.1 is a
    common choice.

    Args:
        beta: inverse temperature, 1 / nats.
        alpha: weight of the likelihood.

    >>> from lit_align.objectives.examples import worked_pair
    >>> rpo(beta=0.1, alpha=1.0)(worked_pair()).loss  # 0.4032 + 2
    tensor([2.4032])
    """
    return cite(WeightedSum((Term("preference", dpo(beta)), Term("likelihood", SFT(), alpha))), RPO)


@preset(Group.LIKELIHOOD, "one loss for order, quality and likelihood, as in multimodal models")
def mpo(beta: float = 0.1, preference: float = 0.8, quality: float = 0.2, generation: float = 1.0) -> WeightedSum:
    """``w_p DPO + w_q BCO + w_g NLL``: which response is better, whether each is good, and how to write one.

    Parts: `dpo`, `bco` with its running mean of rewards, SFT. Paper: Wang et al. 2024, arXiv:2411.10442; the weights
    are those of the authors' scripts.

    Args:
        beta: inverse temperature of both comparisons, 1 / nats.
        preference: weight of the margin's term.
        quality: weight of the term for each response.
        generation: weight of the likelihood.

    >>> from lit_align.objectives.examples import worked_pair
    >>> mpo(beta=0.1)(worked_pair()).loss  # 0.8 · 0.4032 + 0.2 · 1.0722 + 2
    tensor([2.5370])
    """
    terms = (
        Term("preference", dpo(beta), preference),
        Term("quality", bco(beta), quality),
        Term("generation", SFT(), generation),
    )
    return cite(WeightedSum(terms), MPO)
