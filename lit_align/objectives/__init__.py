"""Objectives: parts that combine freely, and presets, which are the combinations that have been published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_align.objectives.averaging import Averaging, DownSampled, LengthPower, LowConfidence, Mean, SharedLength, Sum
from lit_align.objectives.base import Needs, Objective
from lit_align.objectives.batch_level import RankedMargins, RankedResponses
from lit_align.objectives.combine import OnPolicy, Reweighted, Term, WeightedSum, Weighting
from lit_align.objectives.contrast import (
    Contrast,
    Hinge,
    Logistic,
    LogisticExponential,
    ReverseLogistic,
    Robust,
    Square,
)
from lit_align.objectives.divergence import Alpha, Divergence, ForwardKL, JensenShannon, ReverseKL
from lit_align.objectives.dynamic_beta import DynamicBeta
from lit_align.objectives.likelihood import SFT
from lit_align.objectives.odds import OddsRatio
from lit_align.objectives.papers import Paper, papers_of
from lit_align.objectives.pointwise import (
    AnchoredApart,
    AnchoredDown,
    BinaryLogistic,
    InversePerplexity,
    NoiseContrast,
    Pointwise,
    SquareTargets,
)
from lit_align.objectives.preference import PreferenceObjective
from lit_align.objectives.presets import *
from lit_align.objectives.refinement import (
    LengthGap,
    LostLikelihood,
    NoRefinement,
    Refinement,
    RejectedShare,
    SelfRefine,
    SumOf,
    TargetMargin,
)
from lit_align.objectives.regularizer import KL, ClampedKL, ConditionalMatching, Entropy, Regularizer
from lit_align.objectives.response import Anchor, MismatchedMean, NoAnchor, ResponseObjective, RunningMean

if not TYPE_CHECKING:  # type checkers see the imports; to them a derived list would hide every name
    __all__ = sorted(
        name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__)
    )
