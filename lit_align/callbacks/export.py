"""Writes the trained model as a Hugging Face folder."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from typing_extensions import override

from lit_align.callbacks.model_card import model_card
from lit_align.data import PreferenceData
from lit_align.models.sharding import is_sharded
from lit_align.modules import LitModule
from lit_align.modules.step_totals import run_data


class Export(Callback):
    """Writes ``policy/`` into the run's folder when training ends: weights, tokenizer, generation config, model card.

    A reward model is written to ``reward_model/``, as a sequence classification model with one label. The folder is
    written atomically; an older one is replaced.

    Args:
        form: for a LoRA run, ``merged`` adds the adapter to the weights, ``adapter`` writes the adapter alone (of a
            reward model with its head); ``none`` writes nothing.
    """

    def __init__(self, form: Literal["merged", "adapter", "none"] = "merged") -> None:
        self.form = form
        self.folder: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, LitModule):
            return
        if self.form == "adapter" and pl_module.lora is None:
            raise ValueError("export.form is 'adapter', but the run has no adapter; set model.lora or take 'merged'")
        rounds = pl_module.lora is not None and pl_module.loading.dtype == "bfloat16"
        if stage == "fit" and rounds and self.form == "merged":
            rank_zero_warn(
                "export.form is 'merged', and the weights are bfloat16, to which the adapter's changes are rounded; "
                "'adapter' keeps them as they were trained"
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the weights on every rank, write them on rank zero."""
        if self.form == "none" or not isinstance(pl_module, LitModule):
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(pl_module.trained_model, options=options)
        if trainer.is_global_zero:
            name = pl_module.export_name
            self.folder = Path(trainer.default_root_dir) / name
            partial = self.folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            self._write(partial, pl_module, run_data(trainer), weights)
            (partial / "README.md").write_text(model_card(pl_module, trainer), encoding="utf-8")
            older = self.folder.with_name(f".{name}.older")
            shutil.rmtree(older, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(older)
            partial.rename(self.folder)
            shutil.rmtree(older, ignore_errors=True)
        trainer.strategy.barrier()

    def _write(self, folder: Path, module: LitModule, data: Any, weights: dict[str, Any]) -> None:
        if isinstance(data, PreferenceData):
            data.tokenizer.save_pretrained(folder)
        form: Literal["merged", "adapter"] = "adapter" if self.form == "adapter" else "merged"
        merges = module.lora is not None and form == "merged"
        model = _unsharded_copy(module, weights) if merges else module.trained_model
        module.save_model(model, folder, weights, getattr(data, "pad_token", 0), form)


def _unsharded_copy(module: LitModule, weights: dict[str, Any]) -> nn.Module:
    """Return an unsharded copy of a model with an adapter, which can be merged."""
    if not is_sharded(module.trained_model):
        return copy.deepcopy(module.trained_model)
    model = module.build_trained_model()
    model.load_state_dict(weights)
    return model
