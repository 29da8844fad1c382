"""The models: the policy, the frozen reference, and the log-probabilities they give."""

from lit_align.models.adapters import LoRA, SavedAdapter, adapter_of
from lit_align.models.lm_head.fused_loss import HeadGradientAccumulator
from lit_align.models.loading import Loading, load_causal_lm, load_policy
from lit_align.models.logps.check import choose_layout
from lit_align.models.logps.log_probs import LogProbReader
from lit_align.models.logps.plain import response_log_probs
from lit_align.models.logps.reader import ForwardPass
from lit_align.models.logps.scores import ScoreReader
from lit_align.models.reference.base import AdapterOff, LiveReference, MovingReference, Reference, SecondModel
from lit_align.models.reference.precomputed import Precomputed

__all__ = [
    "AdapterOff",
    "ForwardPass",
    "HeadGradientAccumulator",
    "LiveReference",
    "LoRA",
    "Loading",
    "MovingReference",
    "Precomputed",
    "Reference",
    "SecondModel",
    "LogProbReader",
    "ScoreReader",
    "SavedAdapter",
    "adapter_of",
    "choose_layout",
    "load_causal_lm",
    "load_policy",
    "response_log_probs",
]
