"""Writes the trained model as a Hugging Face folder."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from typing_extensions import override

from lit_align.callbacks.model_card import model_card
from lit_align.callbacks.monitors import check_best, load_best
from lit_align.compat.lightning import writes_files
from lit_align.data import PreferenceData
from lit_align.locate import is_gguf
from lit_align.models import Loading
from lit_align.models.export import Form, add_stop_tokens, check_values, pooling_pad, read_back
from lit_align.models.quantization import is_quantized
from lit_align.models.sharding import is_sharded
from lit_align.modules import LitModule
from lit_align.modules.probes import probe_sequences
from lit_align.modules.step_totals import run_data


class Export(Callback):
    """Writes ``policy/`` into the run's folder when training ends: weights, tokenizer, generation config, model card.

    A reward model is written to ``reward_model/``, as a sequence classification model with one label. The folder is
    written atomically; an older one is replaced. Before that it is read back on the CPU, and what it gives for two
    short rows must be what the trained model gives.

    Args:
        form: for a LoRA run, ``merged`` adds the adapter to the weights, ``adapter`` writes the adapter alone (of a
            reward model with its head); ``none`` writes nothing.
        which: the ``last`` weights, or the ``best`` by the metric that a ``ModelCheckpoint`` in ``trainer.callbacks``
            follows.
    """

    def __init__(
        self, form: Literal["merged", "adapter", "none"] = "merged", which: Literal["last", "best"] = "last"
    ) -> None:
        self.form = form
        self.which = which
        self.folder: Path | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, LitModule):
            return
        if self.form == "adapter" and pl_module.lora is None:
            raise ValueError("export.form is 'adapter', but the run has no adapter; set model.lora or take 'merged'")
        if stage == "fit" and self.which == "best" and self.form != "none":
            check_best(trainer)
        rounds = pl_module.lora is not None and pl_module.loading.dtype == "bfloat16"
        if stage == "fit" and rounds and self.form == "merged":
            rank_zero_warn(
                "export.form is 'merged', and the weights are bfloat16, to which the adapter's changes are rounded; "
                "'adapter' keeps them as they were trained"
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the weights on every rank; write them, and read them back, on rank zero."""
        if self.form == "none" or not isinstance(pl_module, LitModule) or not writes_files(trainer):
            return
        what = load_best(trainer, pl_module) if self.which == "best" else ""
        data = run_data(trainer)
        sequences = probe_sequences(data)
        trained = pl_module.read_sequences(sequences) if sequences else None
        weights = _gathered_weights(pl_module.trained_model)
        if trainer.is_global_zero:
            name = pl_module.export_name
            self.folder = Path(trainer.default_root_dir) / name
            partial = self.folder.with_name(f".{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            form: Form = "adapter" if self.form == "adapter" else "merged"
            merges = pl_module.lora is not None and form == "merged"
            model = _unsharded_copy(pl_module, weights) if merges else pl_module.trained_model
            pad = write_model(partial, pl_module, model, data, weights, form)
            note = _adapter_note(pl_module, pad) if form == "adapter" else ""
            gguf = "the weights before training were dequantized from GGUF" if is_gguf(pl_module.policy_name) else ""
            notes = (what and f"weights: {what}", gguf, quantization_note(pl_module.loading, form), note)
            note = "\n- ".join(filter(None, notes))
            (partial / "README.md").write_text(model_card(pl_module, trainer, note), encoding="utf-8")
            del model, weights
            if trained is not None:
                check_export(partial, pl_module, sequences, trained, form, pad)
            older = self.folder.with_name(f".{name}.older")
            shutil.rmtree(older, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(older)
            partial.rename(self.folder)
            shutil.rmtree(older, ignore_errors=True)
        trainer.strategy.barrier()


def _gathered_weights(model: nn.Module) -> dict[str, Any]:
    """Return the weights of a model by their names, gathered in CPU memory; every process must call it."""
    if any(map(is_quantized, model.parameters())):  # never sharded; PyTorch cannot name the scales of 8-bit layers
        return model.state_dict()
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def write_model(
    folder: Path, module: LitModule, model: nn.Module, data: Any, weights: dict[str, Any], form: Form
) -> int:
    """Write a model and its tokenizer, and return the id of padding.

    Tokens that end the responses of the data become end tokens of a policy's generation config, beside its own.

    Args:
        folder: to write to.
        module: whose model it is.
        model: the trained model or an unsharded copy of it; merging changes its weights.
        data: the data module; its tokenizer is written if it is a ``PreferenceData``.
        weights: of the model.
        form: of a model with an adapter.
    """
    pad = int(getattr(data, "pad_token", 0))
    if isinstance(data, PreferenceData):
        tokenizer = copy.deepcopy(data.tokenizer)
        pad = pad if module.trains_policy else pooling_pad(tokenizer)
        tokenizer.save_pretrained(folder)
    module.save_model(model, folder, weights, pad, form)
    if isinstance(data, PreferenceData) and module.trains_policy:
        add_stop_tokens(model, folder, data.response_ends)
    return pad


def check_export(
    folder: Path, module: LitModule, sequences: Sequence[Sequence[int]], trained: Tensor, form: Form, pad: int
) -> None:
    """Raise unless a written folder gives the trained model's numbers in plain transformers.

    Raises:
        ExportError: the numbers differ.
    """
    base = (module.policy_name, module.loading) if form == "adapter" else None
    exported = read_back(folder, sequences, base, None if module.trains_policy else pad)
    check_values(folder, exported, trained, module.rounds)


def _adapter_note(module: LitModule, pad: int) -> str:
    """Return what users of a reward model's adapter must do with its base; empty for a policy."""
    if module.trains_policy:
        return ""
    return (
        "this folder is an adapter: after loading its base with `AutoModelForSequenceClassification` and "
        f"`num_labels=1`, set `config.pad_token_id = {pad}`, the padding token of this folder's tokenizer (if the "
        f"embedding has no row {pad}, call `resize_token_embeddings({pad + 1})` too); transformers reads the score at "
        "the last token that is not that one"
    )


def quantization_note(loading: Loading, form: Form) -> str:
    """Return what the card says of a base model in few bits; empty for one in full precision.

    >>> quantization_note(Loading(), "merged")
    ''
    >>> print(quantization_note(Loading(dtype="bfloat16", quantization="nf4"), "merged"))
    the linear layers of the base model were nf4 in training; here they are dequantized, with the adapter, in bfloat16
    """
    if loading.quantization is None:
        return ""
    trained = f"the linear layers of the base model were {loading.quantization} in training"
    if form == "merged":
        return f"{trained}; here they are dequantized, with the adapter, in {loading.dtype}"
    if loading.quantization == "int8":
        return f"{trained}, and activations {loading.dtype}; `load_in_8bit` of transformers rounds activations as well"
    config = (
        'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, '
        f"bnb_4bit_compute_dtype=torch.{loading.dtype}"
    )
    return f"{trained}; load it with `quantization_config=BitsAndBytesConfig({config})`"


def _on_cpu(model: nn.Module) -> nn.Module:
    """Copy a model to CPU memory, without a second copy on its device."""
    copies: dict[int, Any] = {}
    for weight in model.parameters():
        if is_quantized(weight):
            copies[id(weight)] = copy.deepcopy(weight).to("cpu")
        else:
            copies[id(weight)] = nn.Parameter(weight.detach().to("cpu", copy=True), weight.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(model, copies)


def _unsharded_copy(module: LitModule, weights: dict[str, Any]) -> nn.Module:
    """Return an unsharded copy of a model with an adapter in CPU memory, which can be merged."""
    if not is_sharded(module.trained_model):
        return _on_cpu(module.trained_model)
    model = module.build_trained_model()
    model.load_state_dict(weights)
    return model
