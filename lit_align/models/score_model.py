"""A score model is the body of a causal language model with a linear head that gives one number per token."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel


class ScoreModel(nn.Module):
    """A Hugging Face sequence classification model of one label, read at every token.

    The position that counts is chosen by whoever has the mask: the library's own pooling looks for the last id that
    is not padding, which is the wrong one where the padding is the end token.

    Args:
        model: with a head named ``score``, with or without adapter.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Float[Tensor, "row token"]:
        """The head's number at every token, in float32 (float64 for float64 models).

        Args:
            inputs: what the body takes.
        """
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        hidden = model.base_model(**inputs, use_cache=False)[0]
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = model.score(hidden.to(next(model.score.parameters()).dtype)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))
