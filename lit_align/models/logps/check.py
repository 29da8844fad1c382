"""The layout check: before a fast layout is used, its numbers are compared with those of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_align.compat.transformers import attention_name
from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.inputs import PACKED_ATTENTION, VARLEN
from lit_align.models.logps.packing import LayoutName, needed, shared_tokens
from lit_align.models.logps.reader import ModelReader
from lit_align.types import PairBatch, PairTokens

LADDER: tuple[LayoutName, ...] = ("shared", "packed", "padded")
"""From the fastest layout to the safest; behind them stands ``plain``, which is what they are measured by."""
PAIRS = 2
"""Pairs that are compared: as many as show whether neighbours mix."""
LOGITS = 2**24
"""Whole logits that the comparison may form: it takes the longest pairs that stay below, else beginnings of pairs."""
ROUNDINGS = 8
"""How many times what plain rows differ by when each is read alone a layout may differ by."""


@dataclass(frozen=True)
class Probe:
    """What a layout gives for a few pairs.

    Args:
        log_probs: of their scored tokens, or what else the model gives for each.
        gradient: of a fixed sum of these with respect to the embedding of each id; None where weights are sharded.
    """

    log_probs: PairTokens
    gradient: Float[Tensor, "id hidden"] | None


@dataclass(frozen=True)
class Distance:
    """How far a layout is from plain rows: the largest difference of a log-prob in nats; of gradients, relative."""

    log_probs: float
    gradient: float

    def within(self, other: Distance) -> bool:
        """Whether neither is larger; what is not finite never is."""
        return self.log_probs <= other.log_probs and self.gradient <= other.gradient


@dataclass(frozen=True)
class Choice:
    """What came out of the check.

    Args:
        layout: the layout in use from here on.
        refused: one line for each layout that would have been faster, and why it is not used.
    """

    layout: LayoutName
    refused: tuple[str, ...] = ()


def choose_layout(source: ModelReader, batch: PairBatch) -> Choice:
    """Try layouts on real pairs, fastest first, and take the first one whose numbers are the model's own.

    Log-probabilities and a gradient are compared with those of padded rows and whole logits, without autocast, in
    evaluation mode. What rounding may do is measured: how far plain rows move when each pair is read alone. All
    processes choose alike.

    Args:
        source: takes the layout.
        batch: the pairs to try it on.

    Raises:
        ValueError: a layout was asked for by name, and its numbers are others.
    """
    asked = source.how.layout
    vocabulary = base_of(source.model).config.get_text_config().vocab_size
    pairs = _few(batch, vocabulary)
    with _quietly(source.model, batch.input_ids.device.type):
        source.use("plain")
        truth = _probe(source, pairs)
        allowed = _rounding(source, pairs, truth)
        refused: list[str] = []
        for layout in LADDER if asked == "auto" else (asked,):
            reason = _wrong(source, layout, pairs, (truth, allowed))
            if reason is None:
                source.use(layout, _reach(source, pairs) if layout != "padded" else None)
                return Choice(layout, tuple(refused))
            refused.append(f"layout {layout} is not used: {reason}")
    source.use("plain")
    if asked != "auto":
        raise ValueError(f"layout {asked}: {reason}; take auto")
    return Choice("plain", tuple(refused))


def _wrong(source: ModelReader, layout: LayoutName, pairs: PairBatch, by: tuple[Probe, Distance]) -> str | None:
    """Why a layout cannot be used, on any process; None if it can."""
    truth, allowed = by
    try:
        source.use(layout)
        reason = _unfit(source, layout)
        if reason is None:
            found = distance(_probe(source, pairs), truth)
            if not found.within(allowed):
                reason = (
                    f"log-probs differ by {found.log_probs:.1e} nats and gradients by {found.gradient:.1e}, where "
                    f"rounding explains {allowed.log_probs:.1e} and {allowed.gradient:.1e}"
                )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a model does with inputs that it was not made for)
        reason = f"the model cannot read it ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    return _anywhere(reason, pairs.input_ids.device)


def _unfit(source: ModelReader, layout: LayoutName) -> str | None:
    if source.obstacle is not None:
        return source.obstacle
    attention = attention_name(base_of(source.model))
    if layout != "padded" and attention not in PACKED_ATTENTION:
        return f"attention {attention} cannot be told which tokens see which"
    if layout == "shared" and attention == VARLEN:
        return f"attention {attention} reads every sequence by itself"
    return None


def distance(found: Probe, truth: Probe) -> Distance:
    """How far two probes are apart."""
    apart = float((found.log_probs - truth.log_probs).abs().max())
    if found.gradient is None or truth.gradient is None:
        return Distance(apart, 0.0)
    length = float(truth.gradient.norm())
    return Distance(apart, float((found.gradient - truth.gradient).norm()) / max(length, 1e-30))


def _rounding(source: ModelReader, pairs: PairBatch, truth: Probe) -> Distance:
    """What may pass for rounding: a few times what plain rows differ by, read one pair at a time; never nothing."""
    width = truth.log_probs.shape[-1]
    alone = [_probe(source, _alone(pairs, row), pairs) for row in range(len(pairs.index))]
    rows = [torch.nn.functional.pad(probe.log_probs, (0, width - probe.log_probs.shape[-1])) for probe in alone]
    gradients = [probe.gradient for probe in alone if probe.gradient is not None]
    summed = torch.stack(gradients).sum(0) if gradients else None
    noise = distance(Probe(torch.cat(rows), summed), truth)
    # norms and softmax are float32 at the least, whatever the weights are
    unit = max(ROUNDINGS * torch.finfo(torch.float32).eps, torch.finfo(next(source.model.parameters()).dtype).eps)
    size = max(1.0, float(truth.log_probs.abs().max()))
    return Distance(max(ROUNDINGS * noise.log_probs, unit * size), ROUNDINGS * max(noise.gradient, unit))


def _probe(source: ModelReader, pairs: PairBatch, of: PairBatch | None = None) -> Probe:
    """Log-probs of some pairs, and the gradient of a sum of them by embedded id.

    Args:
        source: gives them.
        pairs: of these.
        of: the batch whose ids the gradient has rows for; that of the pairs if None.
    """
    if any(isinstance(module, FSDPModule) for module in source.model.modules()):
        with torch.no_grad():
            return Probe(source.probe(pairs), None)
    ids = (pairs if of is None else of).input_ids.unique()
    seen: list[tuple[Tensor, Tensor]] = []

    def leaf(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append((given[0], output.detach().requires_grad_()))
        return seen[-1][1]

    handle = base_of(source.model).get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            values = source.probe(pairs)
            read, embedded = seen[-1]
            (gradient,) = torch.autograd.grad((values * _weights(values, pairs)).sum(), embedded)
    finally:
        handle.remove()
    rows = torch.searchsorted(ids, read.flatten())
    total = torch.zeros(len(ids), gradient.shape[-1], dtype=torch.float64, device=ids.device)
    return Probe(values.detach(), total.index_add(0, rows, gradient.flatten(0, 1).double()))


def _weights(values: PairTokens, pairs: PairBatch) -> PairTokens:
    """A fixed number for each token, which no two neighbours share, whatever else is in the batch."""
    _, sides, tokens = values.shape
    angle = pairs.index.view(-1, 1, 1) + torch.arange(sides, device=values.device).view(1, -1, 1)
    return torch.cos(angle + 2.0 * torch.arange(tokens, device=values.device)).to(values.dtype)


def _few(batch: PairBatch, vocabulary: int) -> PairBatch:
    """As many pairs as it takes: those whose sides part, and of these the longest whose whole logits are not too many.

    Where all have too many, the shortest are cut. Where no pair's sides part, nothing would be seen of the tails; one
    side is then made of the other.
    """
    batch = batch if bool(_parts(batch).any()) else _reversed(batch)
    lengths = batch.attention_mask.sum(-1).amax(-1)
    most = LOGITS // (vocabulary * PAIRS * batch.input_ids.shape[1])
    worth = torch.where(lengths <= most, lengths, -lengths) + _parts(batch) * 2 * lengths.max()
    rows = worth.argsort(descending=True, stable=True).repeat(PAIRS)[:PAIRS]
    pairs = _take(batch, rows, int(lengths[rows].max()))
    if int(lengths[rows].max()) <= most:
        return pairs
    cut = _cut(pairs, max(most, 1))
    return cut if bool(_parts(cut).all()) else pairs


def _cut(pairs: PairBatch, most: int) -> PairBatch:
    """Prompts of one length, the middle of longer ones left out, and of responses the beginning.

    Args:
        pairs: of any lengths.
        most: tokens of a response that stay.
    """
    place = torch.arange(pairs.mask.shape[-1], device=pairs.mask.device)
    begins = torch.where(pairs.mask, place, len(place)).amin((1, 2))
    prompt = int(begins.min())
    kept = place[: prompt + most]
    kept = kept + (begins - prompt).view(-1, 1, 1) * (kept >= prompt // 2)
    there = kept < len(place)
    kept = kept.clamp(max=len(place) - 1).expand(*pairs.mask.shape[:2], -1)
    parts = (pairs.input_ids, pairs.attention_mask, pairs.mask)
    ids, attention, mask = (part.gather(-1, kept) for part in parts)
    return replace(pairs, input_ids=ids, attention_mask=attention & there, mask=mask & there)


def _parts(batch: PairBatch) -> Bool[Tensor, " pair"]:
    """Whether each of two sides has tokens of its own to read."""
    two = batch.input_ids.shape[1] > 1
    return (needed(batch).amin(-1) > shared_tokens(batch)) & two


def _reversed(batch: PairBatch) -> PairBatch:
    """The same batch with two sides: each row's longer response, and the same one the other way round."""
    side = batch.lengths.argmax(-1)
    row = torch.arange(len(side), device=side.device)
    parts = (batch.input_ids, batch.attention_mask, batch.mask)
    ids, there, mask = (part[row, side].unsqueeze(1).repeat(1, 2, 1) for part in parts)
    for turned, scored_places in zip(ids[:, 1], mask[:, 1], strict=True):
        turned[scored_places] = turned[scored_places].flip(0)
    truncated = batch.truncated[row, side].unsqueeze(1).repeat(1, 2)
    return replace(batch, input_ids=ids, attention_mask=there, mask=mask, truncated=truncated)


def _take(batch: PairBatch, rows: Tensor, width: int) -> PairBatch:
    """Some pairs of a batch, without what goes with them."""
    return PairBatch(
        input_ids=batch.input_ids[rows, :, :width],
        attention_mask=batch.attention_mask[rows, :, :width],
        mask=batch.mask[rows, :, :width],
        truncated=batch.truncated[rows],
        weight=batch.weight[rows],
        index=batch.index[rows],
    )


def _alone(pairs: PairBatch, row: int) -> PairBatch:
    return _take(pairs, pairs.index.new_tensor([row]), int(pairs.attention_mask[row].sum(-1).max()))


def _reach(source: ModelReader, pairs: PairBatch) -> int | None:
    """The longest sequence that the check speaks for: the model's window, unless the pairs went beyond it."""
    window = smallest_window(vars(base_of(source.model).config.get_text_config()))
    return None if window is None or int(needed(pairs).max()) > window else window


def smallest_window(config: dict[str, Any]) -> int | None:
    """The smallest window that a configuration names, in tokens.

    >>> smallest_window({"sliding_window": 512, "attention_chunk_size": None, "max_window_layers": 3})
    512
    """
    named = (value for name, value in config.items() if name.endswith(("window", "window_size", "chunk_size")))
    return min((value for value in named if type(value) is int and value > 0), default=None)


def _anywhere(reason: str | None, device: torch.device) -> str | None:
    """The reason of this process, or that another one has one."""
    if not (dist.is_available() and dist.is_initialized()):
        return reason
    bad = torch.tensor(float(reason is not None), device=device)
    dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    return reason if reason is not None or not bad else "it is not exact on another process"


@contextmanager
def _quietly(model: nn.Module, device: str) -> Iterator[None]:
    """In evaluation mode and in the weights' own dtype; the mode of every layer comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
