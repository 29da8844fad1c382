"""Writing models as Hugging Face folders, and reading the folders back to see that they hold the trained models."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_align.compat.peft import PeftModel
from lit_align.locate import gguf_source, locate_model
from lit_align.models.adapters import merge
from lit_align.models.generation import model_stop_tokens
from lit_align.models.loading import Loading
from lit_align.models.quantization import prepare, reading_options
from lit_align.models.score_model import ScoreModel, only_errors_logged

Form: TypeAlias = Literal["merged", "adapter"]
"""Of a model with an adapter: ``merged`` adds it to the weights, ``adapter`` writes it alone."""
PAD_TOKEN = "<|pad|>"
"""Name of the padding token that a reward model's tokenizer is given where it has none of its own."""


class ExportError(RuntimeError):
    """A written folder does not hold the trained model. Raised before the folder is put in place."""


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def save_causal_lm(model: nn.Module, folder: Path, weights: dict[str, Any], form: Form = "merged") -> None:
    """Write a causal language model as a Hugging Face folder; ``merged`` changes the weights of an adapted one."""
    if isinstance(model, PeftModel) and form == "merged":
        merge(model).save_pretrained(str(folder))
    elif isinstance(model, PeftModel | PreTrainedModel):
        model.save_pretrained(str(folder), state_dict=weights)


def add_stop_tokens(model: Any, folder: Path, stop_tokens: Iterable[int]) -> None:
    """Add tokens to the end tokens of a written folder's generation config, at which ``generate`` stops."""
    own = model_stop_tokens(model)
    ends = [*sorted(own), *sorted(set(stop_tokens) - own)]
    if set(ends) == own:
        return
    config: Any = copy.deepcopy(model.generation_config)
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    config.save_pretrained(str(folder))


def save_score_model(
    model: ScoreModel, folder: Path, pad: int, weights: dict[str, Any] | None = None, form: Form = "merged"
) -> None:
    """Write a folder that ``AutoModelForSequenceClassification`` reads.

    The library reads the score at the last token that is not ``pad``, so that id must never end a sequence; see
    `pooling_pad`. Where the embedding has no row for it, one is appended.

    Args:
        model: the model to write.
        folder: where to.
        pad: id that the library's own pooling takes for padding.
        weights: gathered weights by their names in ``model.model``; None takes them as they are.
        form: of a model with an adapter: ``merged`` changes the model's weights, ``adapter`` writes adapter and head.
    """
    inner: Any = model.model
    if isinstance(inner, PeftModel):
        if form == "adapter":
            inner.save_pretrained(str(folder), state_dict=weights)
            return
        inner, weights = merge(inner), None
    weights = dict(inner.state_dict()) if weights is None else dict(weights)
    own, inner.config = inner.config, copy.deepcopy(inner.config)
    try:
        for config in {id(part): part for part in (inner.config, inner.config.get_text_config())}.values():
            config.pad_token_id = pad
        _append_rows(inner, weights, pad + 1)
        inner.save_pretrained(str(folder), state_dict=weights)
    finally:
        inner.config = own


def _append_rows(model: Any, weights: dict[str, Any], rows: int) -> None:
    """Append mean rows to the embedding among the weights until it has so many, and count them in the config."""
    embedding = model.get_input_embeddings().weight
    name = next(name for name, weight in model.named_parameters() if weight is embedding)
    missing = rows - len(weights[name])
    if missing > 0:
        mean = weights[name].mean(0, keepdim=True, dtype=torch.float32).to(weights[name].dtype)
        weights[name] = torch.cat([weights[name], mean.expand(missing, -1)])
        model.config.get_text_config().vocab_size = rows


def pooling_pad(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id that only padding has, and make it the tokenizer's padding token.

    It is the tokenizer's own padding token unless that one has another role too, or is part of the chat template; else
    another control token made for padding; else a new token.

    Args:
        tokenizer: of the data; its padding token is set.
    """
    added = tokenizer.added_tokens_decoder
    candidates = [str(token) for token in added.values() if token.special and "pad" in str(token).lower()]
    own = [] if tokenizer.pad_token is None else [str(tokenizer.pad_token)]
    free = next((token for token in own + candidates if _only_pads(tokenizer, token)), None)
    if free is None:
        names = (f"<|pad_{number}|>" if number else PAD_TOKEN for number in range(len(tokenizer)))
        vocabulary = tokenizer.get_vocab()
        free = next(name for name in names if name not in vocabulary and _only_pads(tokenizer, name))
    if free != tokenizer.pad_token:
        tokenizer.add_special_tokens({"pad_token": free})
    return int(tokenizer.get_vocab()[free])


def _only_pads(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    roles = {role: value for role, value in tokenizer.special_tokens_map.items() if role != "pad_token"}
    return token not in map(str, roles.values()) and token not in str(tokenizer.chat_template or "")


# ── reading back ────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def token_log_probs(model: nn.Module, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " token"]:
    """Compute the log-probability of every token but the first of some sequences, each read by itself."""
    device = next(model.parameters()).device
    values = []
    for ids in sequences:
        row = torch.tensor([list(ids)], device=device)
        logits = model(input_ids=row, use_cache=False).logits[0, :-1]
        values.append(logits.double().log_softmax(-1).gather(-1, row[0, 1:, None])[:, 0].cpu())
    return torch.cat(values)


@torch.no_grad()
def end_scores(model: nn.Module, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " sequence"]:
    """Compute the score at the last token of some sequences, each read by itself."""
    device = next(model.parameters()).device
    rows = (torch.tensor([list(ids)], device=device) for ids in sequences)
    return torch.stack([model(input_ids=row)[0, -1].double().cpu() for row in rows])


@torch.no_grad()
def pooled_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " sequence"]:
    """Compute the scores of sequences as users of transformers do, in one batch that is padded on the right."""
    pad, width = model.config.get_text_config().pad_token_id, max(map(len, sequences)) + 2
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in sequences])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
    scores: Tensor = model(input_ids=ids, attention_mask=mask).logits[:, 0].double()
    return scores


def read_back(
    folder: Path, sequences: Sequence[Sequence[int]], base: tuple[str, Loading] | None, pad: int | None = None
) -> list[Tensor]:
    """Read what a written folder gives in plain transformers, on the CPU.

    A base model of 8-bit weights is read as in training, see `prepare`.

    Args:
        folder: what was written.
        sequences: token ids.
        base: name and loading of the model that an adapter alone is put on; None for a whole model.
        pad: padding id of a reward model; None for a language model.

    Returns:
        Log-probabilities of the tokens; or scores of the sequences alone, and padded.
    """
    auto: Any = AutoModelForCausalLM if pad is None else AutoModelForSequenceClassification
    options: dict[str, Any] = {} if pad is None else {"num_labels": 1}
    if base is None:
        model = auto.from_pretrained(str(folder), trust_remote_code=False, use_safetensors=True)
    else:
        name, loading = base
        options |= {"dtype": getattr(torch, loading.dtype), "revision": loading.revision}
        if loading.quantization is not None:
            options |= reading_options(loading.quantization, options["dtype"]) | {"device_map": {"": "cpu"}}
        with only_errors_logged():  # a reward model's head is in the adapter's folder
            place, gguf = gguf_source(locate_model(name))
            options |= {"use_safetensors": None if gguf else True, **gguf}
            model = auto.from_pretrained(place, trust_remote_code=False, **options)
        prepare(model)
        _set_pad(model, pad)
        from peft import PeftModel as AdaptedModel

        model = AdaptedModel.from_pretrained(model, str(folder))
    model.eval()
    if pad is None:
        return [token_log_probs(model, sequences)]
    return [torch.cat([pooled_scores(model, [row]) for row in sequences]), pooled_scores(model, sequences)]


def _set_pad(model: Any, pad: int | None) -> None:
    """Do what the card of an adapter tells its users to do with the base of a reward model."""
    if pad is not None:
        config: PretrainedConfig = model.config.get_text_config()
        config.pad_token_id = model.config.pad_token_id = pad
        if pad >= config.vocab_size:
            model.resize_token_embeddings(pad + 1, mean_resizing=False)


def check_values(folder: Path, exported: Sequence[Tensor], trained: Tensor, rounds: bool) -> None:
    """Raise unless a written folder gives the trained model's numbers.

    Args:
        folder: what was written.
        exported: its numbers, read in one or two ways.
        trained: the numbers of the trained model.
        rounds: whether the weights are kept, or were read, in bfloat16.

    Raises:
        ExportError: they differ by more than rounding explains, in the mean.
    """
    allowed = (0.1 if rounds else 1e-3) * max(1.0, float(trained.abs().mean()))
    for values in exported:
        difference = float((values - trained).abs().mean())
        if not difference <= allowed:
            raise ExportError(
                f"the exported model is not the trained one: read back from {folder}, its numbers differ by "
                f"{difference:.2g} in the mean, and rounding explains {allowed:.2g}; the folder is left there to look "
                "at, and the checkpoint has the trained weights"
            )
