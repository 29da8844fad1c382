"""The trained policy as a Hugging Face folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from lit_align.callbacks.model_card import model_card
from lit_align.data import PreferenceData
from lit_align.modules import LitPreference
from lit_align.modules.steps import run_data


class Export(Callback):
    """Writes ``policy/`` into the run's folder when training ends: weights, tokenizer, generation config, model card.

    The folder appears whole or not at all; an older one is replaced.

    Args:
        form: for a LoRA run, ``merged`` adds the adapter to the weights, ``adapter`` writes the adapter alone;
            ``none`` writes nothing.
    """

    def __init__(self, form: Literal["merged", "adapter", "none"] = "merged") -> None:
        self.form = form
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an option without effect before anything is loaded."""
        if self.form == "adapter" and isinstance(pl_module, LitPreference) and pl_module.lora is None:
            raise ValueError("export.form is 'adapter', but the run has no adapter; set model.lora or take 'merged'")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the weights on every rank, write them on rank zero."""
        if self.form == "none" or not isinstance(pl_module, LitPreference):
            return
        weights = get_model_state_dict(
            pl_module.policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if trainer.is_global_zero:
            self.folder = Path(trainer.default_root_dir) / "policy"
            partial = self.folder.with_name(".policy.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._write(partial, pl_module, run_data(trainer), weights)
            (partial / "README.md").write_text(model_card(pl_module, trainer), encoding="utf-8")
            older = self.folder.with_name(".policy.older")
            shutil.rmtree(older, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(older)
            partial.rename(self.folder)
            shutil.rmtree(older, ignore_errors=True)
        trainer.strategy.barrier()

    def _write(self, folder: Path, module: LitPreference, data: Any, weights: dict[str, Any]) -> None:
        if isinstance(data, PreferenceData):
            data.tokenizer.save_pretrained(folder)
        policy: nn.Module = module.policy
        if isinstance(policy, PeftModel) and self.form == "merged":
            merged = copy.deepcopy(policy).merge_and_unload()
            merged.save_pretrained(str(folder))
        elif isinstance(policy, PeftModel | PreTrainedModel):
            policy.save_pretrained(str(folder), state_dict=weights)
