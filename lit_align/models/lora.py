"""Low-rank adapters on a policy."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoRA:
    r"""Train low-rank updates $W + \frac{\alpha}{r} B A$ and leave the weights alone; Hu et al., 2106.09685.

    With an adapter the reference costs no memory: it is the policy with the adapter switched off.

    Args:
        rank: rank r of each update.
        alpha: its scale α.
        dropout: dropout on the adapter's input; leave at 0 unless the adapter overfits.
        targets: names of the layers to adapt; ``all-linear`` takes every linear layer but the output head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA: rank is {self.rank}; expected 1 or more")
        if self.alpha < 1:
            raise ValueError(f"LoRA: alpha is {self.alpha}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA: dropout is {self.dropout}; expected 0 <= dropout < 1")

    def wrap(self, model: PreTrainedModel, head: str | None = None) -> PeftModel:
        """The model with a fresh adapter, which leaves its outputs unchanged until it is trained.

        Args:
            model: a causal language model, or one with a head for scores.
            head: name of the layer that is trained as a whole beside the adapter; None for none.
        """
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
            modules_to_save=None if head is None else [head],
        )
        return get_peft_model(model, config)
