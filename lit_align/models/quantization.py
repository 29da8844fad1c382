"""Frozen weights in 4 or 8 bits through bitsandbytes: reading them, counting their bytes, and turning them back."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import MethodType
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lit_align.compat.peft import BaseTunerLayer, PeftModel

Quantization: TypeAlias = Literal["nf4", "int8"]
"""``nf4``: 4 bits with double quantization, as in QLoRA; ``int8``: 8 bits, one scale for each row."""
_BLOCK, _OUTER_BLOCK = 64, 256
"""Weights that share an 8-bit scale in ``nf4``, and scales that share one of 32 bits."""
_MARK = "lit_align_quantization"
"""Attribute of the layers of a model without weights that would be quantized."""
_TYPES = ("Params4bit", "Int8Params")


def check_unquantized(place: str, config: Any) -> None:
    """Raise if a model's weights are saved in few bits already.

    Raises:
        ValueError: names what they were quantized with.
    """
    saved = getattr(config, "quantization_config", None)
    if saved is not None:
        method = saved.get("quant_method") if isinstance(saved, dict) else getattr(saved, "quant_method", saved)
        raise ValueError(
            f"{place}: config.json says that the weights are quantized ({method}); expected whole weights, which "
            "loading.quantization nf4 or int8 quantizes as they are read"
        )


def reading_options(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Return what ``from_pretrained`` has to be told.

    Args:
        quantization: of all linear layers but the output head.
        dtype: of the other weights, and of arithmetic.
    """
    if quantization == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": four}


def prepare(model: nn.Module) -> None:
    """Make the layers of a quantized model give the same numbers for a token whatever is beside it, in place.

    LLM.int8() rounds activations to 8 bits as well, but for the columns in which any token of the batch has a large
    value: a later token, or another row, then changes a log-probability. Here activations are never rounded. Packing
    of 4-bit weights for some CPUs, which depends on the mode of the model, is left out.

    Args:
        model: as bitsandbytes has read it.
    """
    for layer in quantized_layers(model):
        part: Any = layer
        if type(part.weight).__name__ == "Int8Params":
            part.forward = MethodType(_weight_only, part)
        else:
            part.support_avx512bf16_for_cpu = False


def is_quantized(weight: object) -> bool:
    """Return whether a weight is kept in 4 or 8 bits."""
    return type(weight).__name__ in _TYPES


def count_weights(weight: Any) -> int:
    """Return the number of a parameter's weights, of which those in 4 bits share their bytes."""
    return int((weight.quant_state.shape if type(weight).__name__ == "Params4bit" else weight.shape).numel())


def quantized_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the layers whose weights are quantized."""
    return (layer for layer in model.modules() if is_quantized(layer._parameters.get("weight")))


def scales(weight: Any) -> list[Tensor]:
    """Return the scales of a quantized weight, which are not finite where one of its values was not."""
    if type(weight).__name__ == "Int8Params":
        return [weight.SCB]
    state = weight.quant_state
    return [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]


class _CodesTimesInputs(torch.autograd.Function):
    """The product with a weight of 8 bits, which exists in full precision only while it is multiplied."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, inputs: Float[Tensor, "... k"], codes: Int[Tensor, "n k"], scale: Float[Tensor, " n"]
    ) -> Float[Tensor, "... n"]:
        ctx.save_for_backward(codes, scale)
        return inputs @ _from_codes(codes, scale).to(inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "... n"]) -> tuple[Float[Tensor, "... k"], None, None]:
        codes, scale = ctx.saved_tensors
        return gradient @ _from_codes(codes, scale).to(gradient.dtype), None, None


def _from_codes(codes: Int[Tensor, "n k"], scale: Float[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Return the weights of 8-bit codes in float32.

    >>> _from_codes(torch.tensor([[127, -127], [0, 127]]), torch.tensor([0.5, 2.0])).tolist()
    [[0.5, -0.5], [0.0, 2.0]]
    """
    return codes.float() * (scale.float() / 127)[:, None]


def _weight_only(layer: Any, inputs: Tensor) -> Tensor:
    """Call a layer of 8-bit weights without rounding its inputs."""
    kind, dtype = inputs.device.type, inputs.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    product: Any = _CodesTimesInputs
    outputs: Tensor = product.apply(inputs.to(dtype), layer.weight, layer.weight.SCB)
    return outputs if layer.bias is None else outputs + layer.bias.to(dtype)


def whole_weight(layer: Any) -> Float[Tensor, "n k"]:
    """Return the weight that a quantized layer multiplies with, in float32."""
    if type(layer.weight).__name__ == "Int8Params":
        return _from_codes(layer.weight.data, layer.weight.SCB)
    functional: Any = import_module("bitsandbytes.functional")
    weight: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.float()


@torch.no_grad()
def merge_quantized(model: PeftModel) -> None:
    """Replace the quantized layers of a model by whole ones, in place; what an adapter adds is added to them first.

    The weights are those that the adapter was trained on, rounded once: to the dtype of the other weights.

    Args:
        model: with an adapter; nothing happens if none of its weights is quantized.
    """
    base: Any = model.get_base_model()
    for name, layer in list(base.named_modules()):
        inner: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if name.endswith(".base_layer") or not is_quantized(inner._parameters.get("weight")):
            continue
        weight = whole_weight(inner)
        if isinstance(layer, BaseTunerLayer):
            adapted: Any = layer
            for adapter in layer.active_adapters:
                weight += adapted.get_delta_weight(adapter).float()
        parent, _, own = name.rpartition(".")
        setattr(base.get_submodule(parent), own, _plain_layer(inner, weight.to(base.dtype)))
    if getattr(base, "hf_quantizer", None) is not None:
        base.hf_quantizer.remove_quantization_config(base)
        base.is_loaded_in_4bit = base.is_loaded_in_8bit = False


def _plain_layer(layer: Any, weight: Float[Tensor, "n k"]) -> nn.Module:
    """Return a layer like the one that was quantized, with a whole weight."""
    rows, columns = weight.shape
    plain: nn.Module
    if issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D):
        plain, weight = Conv1D(rows, columns), weight.T.contiguous()
    else:
        plain = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to(weight.dtype), requires_grad=False)
    return plain


# ── planning ────────────────────────────────────────────────────────────────────────────────────────────────────────


def mark(model: PreTrainedModel, quantization: Quantization) -> None:
    """Mark the layers of a model without weights that bitsandbytes would quantize: all linear ones but the last."""
    head: Any = model.get_output_embeddings()
    last = next(reversed([name for name, _ in model.named_parameters()])).rpartition(".")[0]
    kept = {id(head), id(model.get_submodule(last))}
    for layer in model.modules():
        if isinstance(layer, nn.Linear | Conv1D) and id(layer) not in kept:
            setattr(layer, _MARK, quantization)


def is_marked(model: nn.Module) -> bool:
    """Return whether a model without weights has layers that would be quantized."""
    return any(hasattr(layer, _MARK) for layer in model.modules())


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's weights, those of marked layers as they would be quantized.

    >>> layer = nn.Linear(256, 64, bias=False)
    >>> setattr(layer, _MARK, "nf4")
    >>> stored_bytes(layer)  # 4 bits each, a scale of 8 bits for 64 of them, and of 32 bits for 256 scales
    8452
    """
    marked = {id(layer.get_parameter("weight")): getattr(layer, _MARK) for layer in _marked(model)}
    return sum(_stored(weight, marked.get(id(weight))) for weight in model.parameters())


def _stored(weight: Tensor, quantization: Quantization | None) -> int:
    if quantization is None:
        return weight.nbytes
    if quantization == "int8":
        return weight.numel() + 4 * weight.shape[0]
    blocks = -(-weight.numel() // _BLOCK)
    return weight.numel() // 2 + blocks + 4 * -(-blocks // _OUTER_BLOCK)


def whole_layer_bytes(model: nn.Module) -> int:
    """Return the bytes of the largest marked weight in full, as it is while its layer is computed; 0 for none."""
    weights = ((layer.get_parameter("weight"), getattr(layer, _MARK)) for layer in _marked(model))
    return max((w.nbytes + (4 * w.numel() if kind == "int8" else 0) for w, kind in weights), default=0)


def _marked(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for layer in model.modules() if hasattr(layer, _MARK))
