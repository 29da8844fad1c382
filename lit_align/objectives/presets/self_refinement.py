"""Presets whose margin is shifted by what the policy says under a quality prompt.

Every example computes the loss of the worked pair (`lit_align.objectives.examples`): margin 7 nats, 3 under the
quality prompt.
"""

from __future__ import annotations

from lit_align.objectives.contrast import Logistic, Square
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets.registry import Group, preset
from lit_align.objectives.refinement import SelfRefine


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
