"""Presets whose optimum is a policy as diverse as preferences are.

Every example computes the loss of the worked pair (`lit_align.objectives.examples`): log-probabilities of -20 over 10
tokens and of -60 over 40.
"""

from __future__ import annotations

from lit_align.objectives.contrast import Logistic
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.regularizer import ConditionalMatching, Entropy


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
