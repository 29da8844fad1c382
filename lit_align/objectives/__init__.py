"""Objectives: parts that combine freely, and presets, which are the combinations that have been published."""

from __future__ import annotations

from lit_align.objectives.averaging import Averaging, LengthPower, Mean, SharedLength, Sum
from lit_align.objectives.contrast import Contrast, Hinge, Logistic, Square
from lit_align.objectives.divergence import Alpha, Divergence, ForwardKL, JensenShannon, ReverseKL
from lit_align.objectives.likelihood import SFT
from lit_align.objectives.objective import Objective
from lit_align.objectives.papers import Paper, papers_of
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets import (
    averaged_dpo,
    averaged_ipo,
    cdpo,
    direct_conditional_preference_matching,
    direct_preference_matching,
    dpo,
    ipo,
    ipo_sum,
    ld_dpo,
    r_dpo,
    simpo,
    slic,
    sr_dpo,
    sr_ipo,
)
from lit_align.objectives.refinement import LengthGap, NoRefinement, Refinement, SelfRefine, TargetMargin
from lit_align.objectives.regularizer import KL, ConditionalMatching, Entropy, Regularizer

__all__ = [
    "KL",
    "SFT",
    "Alpha",
    "Averaging",
    "ConditionalMatching",
    "Contrast",
    "Divergence",
    "Entropy",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "LengthGap",
    "LengthPower",
    "Logistic",
    "Mean",
    "NoRefinement",
    "Objective",
    "Paper",
    "PreferenceObjective",
    "Refinement",
    "Regularizer",
    "ReverseKL",
    "SelfRefine",
    "SharedLength",
    "Square",
    "Sum",
    "TargetMargin",
    "averaged_dpo",
    "averaged_ipo",
    "cdpo",
    "direct_conditional_preference_matching",
    "direct_preference_matching",
    "dpo",
    "ipo",
    "ipo_sum",
    "ld_dpo",
    "papers_of",
    "r_dpo",
    "simpo",
    "slic",
    "sr_dpo",
    "sr_ipo",
]
