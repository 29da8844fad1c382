"""Losses and gradients of TRL's trainers, built and called without changes."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import fields
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig

from .setting import PAIRS, Measured, Setting

TRAINERS = {
    "DPO": "trl",
    "KTO": "trl",
    "CPO": "trl.experimental.cpo",
    "ORPO": "trl.experimental.orpo",
    "TPO": "trl.experimental.tpo",
}
"""Where each trainer lives."""
WITH_REFERENCE = ("DPO", "KTO")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def trainer(kind: str, setting: Setting, **options: Any) -> Any:
    """Build a trainer on the rows, in one batch, in float32 on the CPU."""
    home = importlib.import_module(TRAINERS[kind])
    arguments = getattr(home, f"{kind}Config")(
        output_dir=str(setting.folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        per_device_train_batch_size=2 * PAIRS,
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    models = {"model": AutoModelForCausalLM.from_pretrained(setting.policy)}
    if kind in WITH_REFERENCE:
        models["ref_model"] = AutoModelForCausalLM.from_pretrained(setting.reference)
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    if kind == "TPO":
        columns["reference"] = "chosen"  # a gold response, which is left out when tpo_alpha is 0
    rows = Dataset.from_list([{name: row[column] for name, column in columns.items()} for row in setting.rows])
    build = getattr(home, f"{kind}Trainer")
    return build(**models, args=arguments, train_dataset=rows, processing_class=tokenizer)


def batch_of(built: Any) -> dict[str, Any]:
    """Return all rows as the trainer collates them."""
    batch: dict[str, Any] = built.data_collator([built.train_dataset[row] for row in range(len(built.train_dataset))])
    return batch


def measured(built: Any, batch: dict[str, Any]) -> Measured:
    """Return the loss that the trainer computes, and its gradient."""
    model = built.model
    model.train()
    loss = built.compute_loss(model, batch)
    loss.backward()
    gradient = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    assert isinstance(loss, torch.Tensor)
    return Measured(loss.item(), gradient)


def loss_types() -> set[str]:
    """Return the loss types of the DPO trainer, from the help text of its setting."""
    (setting,) = (each for each in fields(DPOConfig) if each.name == "loss_type")
    return set(re.findall(r"`'(\w+)'`", setting.metadata["help"]))
