"""Loading of models from a local folder, a hub, or a configuration with random weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from lit_align.compat.peft import PeftModel
from lit_align.compat.transformers import no_gguf_bar, recompute_activations, unchanged_modeling
from lit_align.errors import check_bitsandbytes, check_trainable
from lit_align.locate import WRITE_BASE, adapter_base, gguf_source, is_gguf, locate_model
from lit_align.models.adapters import LoRA, SavedAdapter, saved_adapter
from lit_align.models.quantization import (
    Quantization,
    check_unquantized,
    is_quantized,
    mark,
    prepare,
    reading_options,
    scales,
)
from lit_align.models.sharding import all_finite, layers, weights_wanted


@dataclass(frozen=True)
class Loading:
    """How the weights of a model are loaded.

    Args:
        revision: branch, tag or (best) full commit hash of a hub model.
        dtype: dtype of the parameters. ``bfloat16`` is meant for frozen models, and for those with an adapter; a run
            that trains all weights in it warns that small steps are rounded away.
        attention: implementation of attention in transformers; None takes its default.
        weights: ``pretrained``, or ``random`` to build the model from its configuration alone.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        seed: of random weights; every process and every later command builds the same ones.
        kernels: ``liger`` takes Liger's for norms and gated layers; it needs a CUDA device and the
            package ``liger-kernel``. They round differently, so a resumed run must keep them.
        quantization: keep the weights of linear layers in 4 bits (``nf4``) or 8 (``int8``), for frozen models and
            below an adapter; it needs the package ``bitsandbytes``. Embeddings, norms and the output head keep
            ``dtype``, in which all is computed: bfloat16 is usual.

    Raises:
        ValueError: weights that are quantized are random, or in float64.
    """

    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    gradient_checkpointing: bool = False
    seed: int = 0
    kernels: Literal["own", "liger"] = "own"
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and (self.weights == "random" or self.dtype == "float64"):
            setting = "weights are random" if self.weights == "random" else "dtype is float64"
            raise ValueError(
                f"loading.quantization is {self.quantization}, and loading.{setting}; expected pretrained weights in "
                "bfloat16 or float32"
            )

    @property
    def storage(self) -> str:
        """How the weights are kept, in words.

        >>> Loading().storage, Loading(dtype="bfloat16", quantization="nf4").storage
        ('float32', 'nf4, other weights bfloat16')
        """
        return self.dtype if self.quantization is None else f"{self.quantization}, other weights {self.dtype}"


PROBLEMS = ("missing_keys", "mismatched_keys", "unexpected_keys")
MAX_NAMED = 8
_REASON = 300
"""Most characters of a library's reason."""
NOISE = re.compile(r"dropout|pdrop$|layer_?drop|drop_?path|drop_(?:rate|connect)|jitter_(?:noise|eps)")
"""Names under which configurations keep what is random in training mode."""


def read_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """Read the configuration of a model, or of an adapter's base model.

    Raises:
        FileNotFoundError: the model does not exist, or the hub cannot be reached; see ``locate_model``.
        ValueError: a GGUF file is damaged, or of an architecture that is not known.
    """
    place = locate_model(name)
    if is_gguf(place):
        return copy.deepcopy(_read_gguf_config(place, Path(place).stat().st_mtime_ns))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except OSError as error:
        adapted = f", an adapter of {place}" if adapter_base(name) else ""
        advice = f". If you have it on disk, {WRITE_BASE}" if adapted else ""
        reason = " ".join(str(error).split()).rstrip(".")
        raise FileNotFoundError(f"model {name}{adapted}: its config.json cannot be read: {reason}{advice}") from error
    return config


@cache
def _read_gguf_config(place: str, _: int) -> PretrainedConfig:
    """Read the configuration in a GGUF file, which takes seconds, once for each time at which it was written."""
    folder, options = gguf_source(place)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as error:  # noqa: BLE001 (what the reader of the format comes upon in a damaged file)
        reason = " ".join(str(error).split())[:_REASON]
        raise ValueError(f"{place} cannot be read: {reason}; expected the GGUF file of a language model") from error
    return config


def load_causal_lm(name: str, loading: Loading) -> PreTrainedModel | PeftModel:
    """Load a causal language model without dropout, in evaluation mode; with its adapter, frozen, if it has one.

    Args:
        name: local folder, GGUF file, hub name, or ``testbed:policy``.
        loading: dtype, revision and so on; those of the base model where the folder holds an adapter.

    Raises:
        FileNotFoundError: the model does not exist; see ``locate_model``.
        ValueError: the weights are damaged, incomplete, or not finite.
    """
    adapter, model = saved_adapter(name), load_base(name, loading)
    return model if adapter is None else adapter.wrap(model, trains=False).eval()


def load_policy(name: str, loading: Loading, adapter: LoRA | SavedAdapter | None) -> PreTrainedModel | PeftModel:
    """Load a causal language model that is trained: all of it, or an adapter.

    Raises:
        ValueError: all of its weights would be trained, and are to be quantized.
    """
    check_trainable("model.loading", loading.quantization, adapter)
    model = load_base(name, loading)
    return model if adapter is None else adapter.wrap(model)


def load_base(name: str, loading: Loading) -> PreTrainedModel:
    """Load a causal language model as ``load_causal_lm`` does, without the adapter that a folder may hold."""
    place, config = locate_model(name), read_config(name, loading.revision)
    switch_dropout_off(config)
    model, problems = build_model(AutoModelForCausalLM, place, config, loading)
    if problems:
        raise ValueError(f"{place}: {describe_problems(problems)}")
    if not weights_wanted() and not is_gguf(place):
        with suppress(OSError):  # many models have no such file
            model.generation_config = GenerationConfig.from_pretrained(place, revision=loading.revision or "main")
    return finish_model(model, place, loading)


def build_model(auto: Any, place: str, config: PretrainedConfig, loading: Loading) -> tuple[Any, dict[str, list[str]]]:
    """Build a model with the weights that ``loading`` names; with weights of no meaning inside ``without_weights``.

    Args:
        auto: the class in transformers, such as ``AutoModelForCausalLM``.
        place: folder or hub name.
        config: of the model.
        loading: dtype, revision and so on.

    Returns:
        The model, and the names of its ``missing_keys``, ``mismatched_keys`` and ``unexpected_keys``, if it has any.

    Raises:
        ValueError: the weights are damaged, or were quantized before; or bitsandbytes is missing.
    """
    check_unquantized(place, config)
    options = {"dtype": getattr(torch, loading.dtype), "attn_implementation": attention_for(config, loading.attention)}
    if loading.weights == "random" or not weights_wanted():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(loading.seed)
            model = auto.from_config(config, **options)
        if loading.quantization is not None:
            mark(model, loading.quantization)
        return model, {}
    folder, gguf = gguf_source(place)
    if gguf and loading.quantization is not None:
        raise ValueError(
            f"{place}: a GGUF file, whose weights are dequantized, with loading.quantization {loading.quantization}; "
            "save it as a folder first, or leave quantization out"
        )
    if loading.quantization is not None:
        check_bitsandbytes("loading.quantization", loading.quantization)
        options |= reading_options(loading.quantization, options["dtype"])
    try:
        with no_gguf_bar():
            model, report = auto.from_pretrained(
                folder,
                config=config,
                revision=loading.revision,
                use_safetensors=None if gguf else True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by the caller, as errors
                **options,
                **gguf,
            )
    except SafetensorError as error:
        files = ", ".join(f"{f.name} ({f.stat().st_size} bytes)" for f in sorted(Path(place).glob("*.safetensors")))
        raise ValueError(f"{place}: the weights are damaged or cut short: {files}: {error}") from error
    if gguf:
        model.hf_quantizer.remove_quantization_config(model)  # the weights are whole
        model.name_or_path = place
    prepare(model)
    return model, {key: sorted(map(str, report[key])) for key in PROBLEMS if report[key]}


def attention_for(config: PretrainedConfig, requested: str | None) -> str | None:
    """Return the implementation of attention to load a model with; ``eager`` where scores have a soft cap.

    Up to transformers 5.17, ``sdpa`` leaves the soft cap of Gemma 2 out without a word; later versions refuse it.

    Args:
        config: of the model.
        requested: ``Loading.attention``; None for the default.

    Raises:
        ValueError: ``sdpa`` is requested for such a model.
    """
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if cap is not None and requested == "sdpa":
        raise ValueError(
            f"loading.attention is sdpa, which leaves out the soft cap of {config.model_type} "
            f"(attn_logit_softcapping {cap:g}); expected eager, flex_attention or flash_attention_2"
        )
    return "eager" if cap is not None and requested is None else requested


def describe_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Describe how a weights file differs from the model that its configuration describes.

    >>> describe_problems({"unexpected_keys": ["model.layers.2.x"]}).partition(";")[0]
    'the weights file has tensors that the model of config.json does not have: model.layers.2.x'
    """
    parts = []
    unfilled = {key: names for key, names in problems.items() if key != "unexpected_keys"}
    if unfilled:
        parts.append(f"the weights do not fill the model: {unfilled}")
    names = problems.get("unexpected_keys", ())
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        parts.append(
            f"the weights file has tensors that the model of config.json does not have: {', '.join(names[:MAX_NAMED])}"
            f"{more}; expected the config.json of these weights (a number of layers, say). If they are to be left "
            "out, load the model with transformers and save it anew"
        )
    return "; ".join(parts)


def finish_model(model: PreTrainedModel, place: str, loading: Loading) -> PreTrainedModel:
    """Check a model's weights, switch dropout off, apply kernels and gradient checkpointing, and set evaluation mode.

    Raises:
        ValueError: a weight is not finite, or the kernels cannot be used.
    """
    for name, parameter in model.named_parameters():
        values = scales(parameter) if is_quantized(parameter) else [parameter]
        if weights_wanted() and not all(map(all_finite, values)):
            raise ValueError(f"{place}: weight {name} has values that are not finite")
    for layer in model.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = 0.0  # also where no configuration names it
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        # PyTorch would give this row no gradient: of the end token, where that is the padding token as well. The
        # positions of padding have none in any case, since no scored token reads them.
        embedding.padding_idx = None
    if loading.kernels == "liger":
        use_liger(model)
    if loading.gradient_checkpointing:
        recompute_activations(model)
    evaluating: PreTrainedModel = model.eval()
    return evaluating


def switch_dropout_off(config: PretrainedConfig) -> None:
    """Set the noise of training mode to 0, in nested configurations too: dropout, left-out layers, jitter of routers.

    Preference objectives compare log-probabilities; noise in them moves the margin. What no configuration has a name
    for is checked when training starts; see ``check_training_mode``.
    """
    values: dict[str, Any] = vars(config)
    for key, value in values.items():
        if isinstance(value, PretrainedConfig):
            switch_dropout_off(value)
        elif isinstance(value, float) and NOISE.search(key):
            setattr(config, key, 0.0)


BACKEND = "inductor"
"""The backend of ``torch.compile``."""


def compile_layers(model: nn.Module) -> None:
    """Compile a transformer layer by layer, in place, for any length, when the layers are first called.

    Layers are alike, so the code of the first one serves all. The names of the weights stay the same.
    """
    for layer in layers(model):
        layer.compile(dynamic=True, backend=BACKEND)


def use_liger(model: PreTrainedModel) -> None:
    """Replace norms and gated layers of a model by Liger's kernels, but neither losses nor the output head.

    Rotary positions are a function of all models of an architecture, so that theirs would reach models with kernels of
    their own. They stay as they are, and so does everything else that Liger sets outside of the model.

    Raises:
        ValueError: there is no CUDA device, Liger is not installed, or it does not support this architecture.
    """
    if not torch.cuda.is_available():
        raise ValueError("loading.kernels is liger, whose kernels need a CUDA device; none is there")
    if find_spec("liger_kernel") is None:
        raise ValueError("loading.kernels is liger, which is not installed: pip install liger-kernel")
    liger: Any = import_module("liger_kernel.transformers.monkey_patch")
    known, kind = liger.MODEL_TYPE_TO_APPLY_LIGER_FN, model.config.model_type
    if kind not in known:
        raise ValueError(f"loading.kernels is liger, which has none for {kind}; it has: {', '.join(sorted(known))}")
    with unchanged_modeling():
        liger._apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
