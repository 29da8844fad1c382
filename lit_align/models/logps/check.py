"""The layout check: before a fast layout is used, its numbers are compared with those of the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lit_align.compat.transformers import attention_name
from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.inputs import PACKED_ATTENTION, neighbours_as_sides
from lit_align.models.logps.packing import LayoutName, needed, shared_tokens
from lit_align.models.logps.paths import VARLEN
from lit_align.models.logps.probe import Distance, Probe, distance, in_float32, probe, rounding_noise, short_pairs
from lit_align.models.logps.reader import ModelReader
from lit_align.models.narrow import evaluating
from lit_align.types import PairBatch

LADDER: tuple[LayoutName, ...] = ("shared", "packed", "padded")
"""From the fastest layout to the safest; behind them stands ``plain``, which is what they are measured by."""
ALLOWANCE = 4
"""How many times what rounding moves the plain layout by a layout may differ from it."""
LARGEST_GRADIENT = 0.5
"""A relative difference of gradients that rounding never excuses, even where a deep model in 16 bits amplifies it."""


@dataclass(frozen=True)
class Choice:
    """What came out of the check.

    Args:
        layout: the layout in use from here on.
        warnings: one line for each layout that would have been faster, why it is not used, and what that costs; or
            that the requested layout is used although it is not exact.
    """

    layout: LayoutName
    warnings: tuple[str, ...] = ()


def choose_layout(reader: ModelReader, batch: PairBatch) -> Choice:
    """Try layouts on a few short pairs, fastest first, and take the first one whose numbers are the model's own.

    On devices, a layout can be read by several paths of attention; the first one that is exact is used, see
    `choose_path`.

    Log-probabilities and a gradient are compared with those of padded rows and whole logits in evaluation mode; in
    float32 on a CPU, and in the run's own precision, autocast included, where kernels depend on it: on other devices,
    and with attention that exists in 16 bits only. A layout may differ from these by what rounding explains, see
    `rounding_noise`: their own errors are as large as any layout's. A layout that was requested by name is used in any
    case. All processes choose alike.

    Args:
        reader: takes the layout.
        batch: real pairs, whose tokens the short pairs are made of.
    """
    config = base_of(reader.model).config.get_text_config()
    window = smallest_window(vars(config))
    pairs = short_pairs(batch, window, getattr(config, "max_position_embeddings", None))
    reach = None if window is None or int(needed(pairs.on_host).max()) > window else window
    requested, reasons = reader.how.layout, dict[LayoutName, str]()
    refused: tuple[str, ...] = ()
    with evaluating(reader.model), _precision(reader, batch.input_ids.device.type):
        truth, allowed = _truth(reader, pairs)
        if isinstance(allowed, str):
            reader.use("plain" if requested == "auto" else requested, reach)
            return Choice(reader.layout, (f"layout {reader.layout} is used unchecked: {allowed}",))
        for layout in LADDER if requested == "auto" else (requested,):
            reason, refused = _by_any_path(reader, layout, pairs, truth, allowed)
            if reason is None:
                reader.use(layout, reach if layout != "padded" else None)
                break
            reasons[layout], refused = reason, ()
        else:
            reader.use("plain" if requested == "auto" else requested, reach)
    warnings = (_warning(layout, reason, reader.layout, batch) for layout, reason in reasons.items())
    return Choice(reader.layout, (*refused, *warnings))


def _truth(reader: ModelReader, pairs: PairBatch) -> tuple[Probe, Distance | str]:
    """Read pairs in the plain layout; return what it gives, and how far layouts may differ, or why it fails."""
    truth, reason = Probe(pairs.weight.view(1, 1, -1), None), None
    try:
        reader.use("plain")
        truth = probe(reader, pairs)
        noise = rounding_noise(reader, pairs, truth)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (as in _why_not)
        reason = _cannot_read(error)
    reason = _on_any_process(reason, pairs.input_ids.device)
    if reason is not None:
        return truth, reason
    return truth, Distance(ALLOWANCE * noise.values, min(ALLOWANCE * noise.gradient, LARGEST_GRADIENT))


@contextmanager
def _precision(reader: ModelReader, device: str) -> Iterator[None]:
    """Compute in float32, or leave the precision of the run where the kernels in use depend on it."""
    if device != "cpu" or attention_name(base_of(reader.model)) == VARLEN:
        yield
    else:
        with torch.autocast(device, enabled=False), in_float32(reader.model):
            yield


def _cannot_read(error: Exception) -> str:
    return f"the model cannot read it ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def _warning(layout: LayoutName, reason: str, used: LayoutName, batch: PairBatch) -> str:
    """Word why a layout is not used, what is used instead, and what that costs."""
    if layout == used:
        return f"layout {layout} is used as requested, but it is not exact for this model: {reason}"
    cost = _tokens_read(used, batch.on_host) / max(_tokens_read(layout, batch.on_host), 1)
    instead = f"{used} is used instead; it reads {cost:.2g} times as many tokens"
    logits = " and forms whole logits" if used == "plain" else ""
    return f"layout {layout} is not used: {reason}. {instead}{logits}"


def _tokens_read(layout: LayoutName, batch: PairBatch) -> int:
    """Count the tokens of a batch that a model reads in a layout."""
    if layout == "shared":
        batch = neighbours_as_sides(batch)
        return int(needed(batch).sum() - shared_tokens(batch).sum())
    return int(needed(batch).sum()) if layout == "packed" else batch.attention_mask.numel()


def _by_any_path(
    reader: ModelReader, layout: LayoutName, pairs: PairBatch, truth: Probe, allowed: Distance
) -> tuple[str | None, tuple[str, ...]]:
    """Try a layout by one path of attention after the other.

    Returns:
        Why the layout cannot be used, on any process, None if it can; and a line for each path that it was tried by
        before.
    """
    reader.refused, refused = frozenset(), list[str]()
    device = pairs.input_ids.device
    while True:
        reason = _why_not(reader, layout, pairs, truth, allowed)
        if reason is None or layout == "padded":
            return reason, tuple(refused)
        path, _ = reader.path(device)
        if not reader.refuse_path(device):
            return reason, tuple(refused)
        refused.append(f"attention by {path} is not used: {reason}")


def _why_not(reader: ModelReader, layout: LayoutName, pairs: PairBatch, truth: Probe, allowed: Distance) -> str | None:
    """Return why a layout cannot be used, on any process; None if it can."""
    try:
        reader.use(layout)
        reason = _obstacle(reader, layout)
        if reason is None:
            apart = distance(probe(reader, pairs), truth)
            if not apart.within(allowed):
                reason = (
                    f"log-probs differ by {apart.values:.1e} nats and gradients by {apart.gradient:.1e}, where "
                    f"rounding explains {allowed.values:.1e} and {allowed.gradient:.1e}"
                )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a model does with inputs that it was not made for)
        reason = _cannot_read(error)
    return _on_any_process(reason, pairs.input_ids.device)


def _obstacle(reader: ModelReader, layout: LayoutName) -> str | None:
    """Return why a layout cannot even be tried; None if it can."""
    if reader.obstacle is not None:
        return reader.obstacle
    attention = attention_name(base_of(reader.model))
    if layout != "padded" and attention not in PACKED_ATTENTION:
        return f"attention {attention} cannot be told which tokens see which"
    if layout == "shared" and attention == VARLEN:
        return f"attention {attention} reads every sequence by itself"
    return None


def smallest_window(config: dict[str, Any]) -> int | None:
    """Return the smallest window that a configuration names, in tokens.

    >>> smallest_window({"sliding_window": 512, "attention_chunk_size": None, "max_window_layers": 3})
    512
    """
    named = (value for name, value in config.items() if name.endswith(("window", "window_size", "chunk_size")))
    return min((value for value in named if type(value) is int and value > 0), default=None)


def _on_any_process(reason: str | None, device: torch.device) -> str | None:
    """Return the reason of this process, or that another process has one."""
    if not (dist.is_available() and dist.is_initialized()):
        return reason
    bad = torch.tensor(float(reason is not None), device=device)
    dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    return reason if reason is not None or not bad else "it is not exact on another process"
