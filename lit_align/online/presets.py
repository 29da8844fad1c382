"""The named problems of on-policy training: standard RLHF, preference matching, conditional preference matching."""

from __future__ import annotations

from lit_align.objectives.regularizer import KL, ConditionalMatching, Entropy
from lit_align.online.advantage import GAE, Advantage
from lit_align.online.length import LengthControl, NoLengthControl
from lit_align.online.rlhf import RLHF
from lit_align.online.surrogate import Clipped, Surrogate
from lit_align.online.weighting import TokenMean, TokenWeighting


def kl_rlhf(
    beta: float = 0.1,
    advantage: Advantage = GAE(),
    surrogate: Surrogate = Clipped(),
    weighting: TokenWeighting = TokenMean(),
    score_limit: float | None = None,
    length: LengthControl = NoLengthControl(),
) -> RLHF:
    """``max E[r] - β KL(π ‖ π_ref)``, whose optimum is ``π ∝ π_ref exp(r / β)``: standard RLHF.

    Part: KL. Paper: Ouyang et al. 2022, arXiv:2203.02155, Eq. 2 without the pre-training term.

    Args:
        beta: inverse temperature, 1 / nats.
        advantage: from token rewards to advantages.
        surrogate: from advantages to a loss per token.
        weighting: how much a token counts.
        score_limit: scores are clamped to ± this.
        length: what keeps the optimum's length finite.

    >>> kl_rlhf().regularizer, kl_rlhf().cautions
    (KL(), ())
    """
    return RLHF(KL(), beta, advantage, surrogate, weighting, score_limit=score_limit, length=length)


def pm_rlhf(
    beta: float = 1.0,
    advantage: Advantage = GAE(),
    surrogate: Surrogate = Clipped(),
    weighting: TokenWeighting = TokenMean(),
    score_limit: float | None = None,
    length: LengthControl = NoLengthControl(),
) -> RLHF:
    """``max E[r - β log π]``, whose optimum is ``π ∝ exp(r / β)``: preference matching where β is 1.

    Part: Entropy. Paper: Xiao et al. 2024, arXiv:2405.16455.

    Args:
        beta: inverse temperature, 1 / nats.
        advantage: from token rewards to advantages.
        surrogate: from advantages to a loss per token.
        weighting: how much a token counts.
        score_limit: scores are clamped to ± this.
        length: what keeps the optimum's length finite.

    >>> pm_rlhf().regularizer, pm_rlhf().needs.reference
    (Entropy(), False)
    """
    return RLHF(Entropy(), beta, advantage, surrogate, weighting, score_limit=score_limit, length=length)


def conditional_pm_rlhf(
    beta: float = 1.0,
    alpha: float = 0.1,
    advantage: Advantage = GAE(),
    surrogate: Surrogate = Clipped(),
    weighting: TokenWeighting = TokenMean(),
    score_limit: float | None = None,
    length: LengthControl = NoLengthControl(),
) -> RLHF:
    """Preference matching on tokens that the reference finds likelier than α, KL on the others.

    The optimum is ``π ∝ exp(r / β) Π_{t: π_ref(y_t) ≤ α} π_ref(y_t)``.

    Part: ConditionalMatching. Paper: Xiao et al. 2024, arXiv:2405.16455, which tries β in {0.1, 0.5, 1} and α in
    {0.1, 0.3, 0.5}.

    Args:
        beta: inverse temperature, 1 / nats.
        alpha: probability above which the reference is ignored.
        advantage: from token rewards to advantages.
        surrogate: from advantages to a loss per token.
        weighting: how much a token counts.
        score_limit: scores are clamped to ± this.
        length: what keeps the optimum's length finite.

    >>> conditional_pm_rlhf(alpha=0.3).regularizer
    ConditionalMatching(alpha=0.3)
    """
    return RLHF(
        ConditionalMatching(alpha), beta, advantage, surrogate, weighting, score_limit=score_limit, length=length
    )
