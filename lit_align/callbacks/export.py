"""Writes the trained model as a Hugging Face folder."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from peft import PeftModel
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel
from typing_extensions import override

from lit_align.callbacks.model_card import model_card
from lit_align.data import PreferenceData
from lit_align.models.score_model import save_score_model
from lit_align.models.sharding import is_sharded
from lit_align.modules import LitReward, Module
from lit_align.modules.step_totals import run_data

Model = TypeVar("Model", bound=nn.Module)


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
        if self.form == "adapter" and isinstance(pl_module, Module) and pl_module.lora is None:
            raise ValueError("export.form is 'adapter', but the run has no adapter; set model.lora or take 'merged'")
        narrow = isinstance(pl_module, Module) and pl_module.lora is not None and pl_module.loading.dtype == "bfloat16"
        if stage == "fit" and narrow and self.form == "merged":
            rank_zero_warn(
                "export.form is 'merged', and the weights are bfloat16, to which the adapter's changes are rounded; "
                "'adapter' keeps them as they were trained"
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the weights on every rank, write them on rank zero."""
        if self.form == "none" or not isinstance(pl_module, Module):
            return
        trained = pl_module.model if isinstance(pl_module, LitReward) else pl_module.policy
        weights = get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if trainer.is_global_zero:
            name = "reward_model" if isinstance(pl_module, LitReward) else "policy"
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

    def _write(self, folder: Path, module: Module, data: Any, weights: dict[str, Any]) -> None:
        if isinstance(data, PreferenceData):
            data.tokenizer.save_pretrained(folder)
        form: Literal["merged", "adapter"] = "adapter" if self.form == "adapter" else "merged"
        merges = module.lora is not None and form == "merged"
        if isinstance(module, LitReward):
            model = _unsharded_copy(module.model, module.build_model, weights) if merges else module.model
            inner = {name.removeprefix("model."): weight for name, weight in weights.items()}
            save_score_model(model, folder, run_data(module.trainer).pad_token, inner, form)
        else:
            policy = _unsharded_copy(module.policy, module.build_policy, weights) if merges else module.policy
            write_policy(folder, policy, weights, form)


def write_policy(
    folder: Path, policy: nn.Module, weights: dict[str, Any], form: Literal["merged", "adapter"] = "merged"
) -> None:
    """Write a policy as a Hugging Face folder.

    Args:
        folder: to write to.
        policy: a model, or one with an adapter; ``merged`` changes the latter's weights.
        weights: of the policy, all of them.
        form: as in ``Export``.
    """
    if isinstance(policy, PeftModel) and form == "merged":
        policy.merge_and_unload().save_pretrained(str(folder))
    elif isinstance(policy, PeftModel | PreTrainedModel):
        policy.save_pretrained(str(folder), state_dict=weights)


def _unsharded_copy(model: Model, build: Callable[[], Model], weights: dict[str, Any]) -> Model:
    """Return an unsharded copy of a model with an adapter, which can be merged."""
    if not is_sharded(model):
        return copy.deepcopy(model)
    copied = build()
    copied.load_state_dict(weights)
    return copied
