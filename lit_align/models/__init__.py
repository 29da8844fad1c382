"""The models: the policy, the frozen reference, and the log-probabilities they give."""

from lit_align.models.loading import Loading, load_causal_lm
from lit_align.models.log_probs import response_log_probs
from lit_align.models.lora import LoRA
from lit_align.models.reference import AdapterOff, Reference, SecondModel

__all__ = ["AdapterOff", "LoRA", "Loading", "Reference", "SecondModel", "load_causal_lm", "response_log_probs"]
