"""On-policy training as free combinations of parts, and the divergence that preference matching is measured by."""

from lit_align.objectives.regularizer import KL, ConditionalMatching, Entropy, Regularizer
from lit_align.online.advantage import GAE, Advantage, GreedyBaseline, GroupNormalised, LeaveOneOut
from lit_align.online.bradley_terry import BradleyTerry
from lit_align.online.exact import Problem, matching_kl
from lit_align.online.length import KLAfter, LengthControl, MeanPenalty, NoLengthControl, TokenCost
from lit_align.online.matching import PairedPreferences
from lit_align.online.objective import Experience, OnlineObjective, OnlineOutcome
from lit_align.online.pairing import BestAgainstWorst, EveryPair, PairLabels, RandomPairs, ResponsePairing
from lit_align.online.presets import conditional_pm_rlhf, kl_rlhf, pm_rlhf
from lit_align.online.rlhf import RLHF
from lit_align.online.shaping import Shaping, last_tokens
from lit_align.online.surrogate import Clipped, Reinforce, Surrogate, ValueLoss
from lit_align.online.weighting import ResponseMean, ResponseSum, TokenMean, TokenWeighting

__all__ = [
    "GAE",
    "KL",
    "RLHF",
    "Advantage",
    "BestAgainstWorst",
    "BradleyTerry",
    "Clipped",
    "ConditionalMatching",
    "Entropy",
    "GreedyBaseline",
    "KLAfter",
    "LengthControl",
    "MeanPenalty",
    "NoLengthControl",
    "TokenCost",
    "GroupNormalised",
    "LeaveOneOut",
    "EveryPair",
    "Experience",
    "OnlineObjective",
    "OnlineOutcome",
    "PairLabels",
    "PairedPreferences",
    "ResponsePairing",
    "Problem",
    "RandomPairs",
    "Regularizer",
    "Reinforce",
    "ResponseMean",
    "ResponseSum",
    "Shaping",
    "Surrogate",
    "TokenMean",
    "ValueLoss",
    "TokenWeighting",
    "conditional_pm_rlhf",
    "kl_rlhf",
    "last_tokens",
    "matching_kl",
    "pm_rlhf",
]
