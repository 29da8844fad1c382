"""The models: the policy, the frozen reference, and the log-probabilities they give."""

from lit_align.models.layout_check import choose_layout
from lit_align.models.loading import Loading, load_causal_lm
from lit_align.models.log_probs import response_log_probs
from lit_align.models.lora import LoRA
from lit_align.models.one_pass import HeadSum
from lit_align.models.precomputed import Precomputed
from lit_align.models.reader import ForwardPass
from lit_align.models.reference import AdapterOff, LiveReference, MovingReference, Reference, SecondModel
from lit_align.models.token_log_probs import TokenLogProbs
from lit_align.models.token_scores import TokenScores
from lit_align.models.vocabulary import Extras

__all__ = [
    "AdapterOff",
    "Extras",
    "ForwardPass",
    "HeadSum",
    "LiveReference",
    "LoRA",
    "Loading",
    "MovingReference",
    "Precomputed",
    "Reference",
    "SecondModel",
    "TokenLogProbs",
    "TokenScores",
    "choose_layout",
    "load_causal_lm",
    "response_log_probs",
]
