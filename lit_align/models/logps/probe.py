"""A few short pairs of a batch, what a model gives for them, and how far rounding moves that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map

from lit_align.compat.transformers import attention_name
from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.packing import scored
from lit_align.models.logps.paths import VARLEN
from lit_align.models.logps.reader import ModelReader
from lit_align.types import PairBatch, PairTokens

PROMPTS = (7, 4)
"""Tokens of the prompt of each probed pair: two pairs, so that neighbours could mix, of different lengths."""
RESPONSES = ((5, 4), (3, 5))
"""Tokens of the responses of each probed pair."""
LONGEST_WINDOW = 256
"""Windows up to this many tokens are exceeded by the probe; on longer ones it would take seconds."""


_NARROW_BITS = 16


@dataclass(frozen=True)
class Probe:
    """What a layout gives for a few pairs.

    Args:
        values: the log-probabilities of their scored tokens, or what else the model gives for each.
        gradient: of a fixed sum of these with respect to the embedding of each id; None where weights are sharded.
    """

    values: PairTokens
    gradient: Float[Tensor, "id hidden"] | None


@dataclass(frozen=True)
class Distance:
    """How far two probes are apart: the largest difference of a log-probability in nats; of gradients, relative."""

    values: float
    gradient: float

    def within(self, other: Distance) -> bool:
        """Whether neither is larger; what is not finite never is."""
        return self.values <= other.values and self.gradient <= other.gradient


def distance(probe: Probe, truth: Probe) -> Distance:
    """Return how far a probe is from another one."""
    values = float((probe.values - truth.values).abs().max())
    if probe.gradient is None or truth.gradient is None:
        return Distance(values, 0.0)
    length = float(truth.gradient.norm())
    return Distance(values, float((probe.gradient - truth.gradient).norm()) / max(length, 1e-30))


def probe(reader: ModelReader, pairs: PairBatch) -> Probe:
    """Read pairs in the layout in use: values of their tokens, and the gradient of a sum of these by embedded id."""
    if any(isinstance(module, FSDPModule) for module in reader.model.modules()):
        with torch.no_grad():
            return Probe(reader.probe(pairs), None)
    embedded: list[tuple[Tensor, Tensor]] = []

    def replace_by_leaf(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        embedded.append((inputs[0], output.detach().requires_grad_()))
        return embedded[-1][1]

    handle = base_of(reader.model).get_input_embeddings().register_forward_hook(replace_by_leaf)
    try:
        with torch.enable_grad():
            values = reader.probe(pairs)
            ids, leaf = embedded[-1]
            (gradient,) = torch.autograd.grad((values * _weights(values)).sum(), leaf)
    finally:
        handle.remove()
    known = pairs.input_ids.unique()
    total = torch.zeros(len(known), gradient.shape[-1], dtype=torch.float64, device=known.device)
    rows = torch.searchsorted(known, ids.flatten())
    return Probe(values.detach(), total.index_add(0, rows, gradient.flatten(0, 1).double()))


def _weights(values: PairTokens) -> PairTokens:
    """Return a fixed number for each token that differs from those of its neighbours."""
    numbers = 2.0 * torch.arange(values.numel(), device=values.device) + 1
    return torch.cos(numbers).view_as(values).to(values.dtype)


def rounding_noise(reader: ModelReader, pairs: PairBatch, truth: Probe) -> Distance:
    """Estimate how far rounding alone moves a probe, by Monte Carlo arithmetic.

    The outputs of every layer are perturbed at random by as much as rounding perturbs them. Reading the same rows in
    batches of other sizes would show less than that: the same kernels round the same way.

    Args:
        reader: in the layout that gave ``truth``.
        pairs: as for ``truth``.
        truth: the probe without perturbation.
    """
    with _perturbed(reader.model, torch.Generator(pairs.input_ids.device).manual_seed(0)):
        return distance(probe(reader, pairs), truth)


@contextmanager
def _perturbed(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Perturb the output of each layer without children as rounding does, and the gradient that comes back to it."""

    def noisy(tensor: Tensor) -> Tensor:
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        noise = torch.randn(wide.shape, generator=generator, device=wide.device, dtype=wide.dtype)
        scale = wide.detach().square().mean(-1, keepdim=True).sqrt() * _relative_error(tensor.dtype)
        return (wide + noise * scale).to(tensor.dtype)

    def perturb(output: object) -> object:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        perturbed = noisy(output)
        if perturbed.requires_grad:
            perturbed.register_hook(noisy)
        return perturbed

    with ExitStack() as hooks:
        for module in model.modules():
            if next(module.children(), None) is None:
                handle = module.register_forward_hook(lambda module, inputs, output: tree_map(perturb, output))
                hooks.callback(handle.remove)
        yield


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 where the weights have 16 bits and a copy of them in float32 fits into memory.

    Mistakes that rounding to 16 bits would hide are seen then. The weights come back with the same bits. Sharded
    weights, and attention that exists in 16 bits only, are left as they are.
    """
    narrow = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and torch.finfo(tensor.dtype).bits == _NARROW_BITS
    ]
    if not narrow or not _fits_in_float32(model, sum(tensor.numel() for tensor in narrow)):
        yield
        return
    weights = [tensor.data for tensor in narrow]
    try:
        for tensor in narrow:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, weight in zip(narrow, weights, strict=True):
            tensor.data = weight


def _fits_in_float32(model: nn.Module, weights: int) -> bool:
    if attention_name(base_of(model)) == VARLEN or any(isinstance(tensor, DTensor) for tensor in model.parameters()):
        return False
    device = next(model.parameters()).device
    return device.type != "cuda" or 2 * 4 * weights < torch.cuda.mem_get_info(device)[0]


def _relative_error(dtype: torch.dtype) -> float:
    """Return the standard deviation of the error of a layer's output, relative to the root mean square of a row.

    In 16 bits the sum over the inputs is formed in float32, and only the result is rounded: ε/√12 for an error that is
    uniform in ±ε/2. In wider types the sum itself is rounded at every term, which measures as about ε. Models in
    float64 compute norms and rotations in float32.
    """
    if torch.finfo(dtype).bits <= _NARROW_BITS:
        return torch.finfo(dtype).eps / 12**0.5
    return torch.finfo(torch.float32).eps


def short_pairs(
    batch: PairBatch,
    window: int | None = None,
    positions: int | None = None,
    prompts: Sequence[int] = PROMPTS,
    responses: Sequence[tuple[int, int]] = RESPONSES,
) -> PairBatch:
    """Make two short pairs of the tokens of a batch, which differ in every length.

    Their cost does not depend on the batch: a prompt is the beginning and the end of a real one, a response the
    beginning of a real one. Where both responses begin alike, or one is absent, the second one is reversed.

    Args:
        batch: real pairs, padded on either side; one side or both.
        window: the smallest attention window of the model. Prompts exceed one of up to ``LONGEST_WINDOW`` tokens,
            repeating themselves if necessary.
        positions: number of positions of the model, which no sequence exceeds; None for no limit.
        prompts: most tokens of the prompt of each of the two pairs.
        responses: most tokens of the responses of each pair.
    """
    device, batch = batch.input_ids.device, batch.on_host
    longest = max(prompts) + max(map(max, responses))
    beyond = window is not None and window <= LONGEST_WINDOW and (positions is None or window + longest < positions)
    least = window + 1 if window is not None and beyond else 0
    present = scored(batch).flatten(1).any(-1).nonzero().squeeze(-1).tolist() or [0]
    sequences, starts = [], []
    for row, prompt_size, sizes in zip((present[0], present[-1]), prompts, responses, strict=True):
        prompt, sides = _parts(batch, row)
        prompt = _resized(prompt, least, least + prompt_size)
        sequences += [torch.cat([prompt, response[:size]]) for response, size in zip(sides, sizes, strict=True)]
        starts += [len(prompt)] * 2
    ids = pad_sequence(sequences, batch_first=True)
    place = torch.arange(ids.shape[-1], device=ids.device)
    ends = ids.new_tensor([len(sequence) for sequence in sequences]).unsqueeze(-1)
    attention = place < ends
    mask = attention & (place >= ids.new_tensor(starts).unsqueeze(-1))
    two = (2, 2, -1)
    ones = torch.ones(2, device=ids.device)
    pairs = PairBatch(ids.view(two), attention.view(two), mask.view(two), ones.expand(2, 2) < 0, ones, ones.long())
    return pairs.to(device)


def _resized(prompt: Tensor, least: int, most: int) -> Tensor:
    """Repeat a prompt until it has ``least`` tokens, and leave out the middle of one with more than ``most``."""
    if len(prompt) < least:
        prompt = prompt.repeat(-(-least // len(prompt)))
    return torch.cat([prompt[: most - most // 2], prompt[-(most // 2) :]]) if len(prompt) > most else prompt


def _parts(batch: PairBatch, row: int) -> tuple[Tensor, list[Tensor]]:
    """Return the tokens of a row's prompt and of two responses that begin differently."""
    ids, attention, mask = batch.input_ids[row], batch.attention_mask[row], scored(batch)[row]
    responses = []
    for side in mask.any(-1).nonzero().squeeze(-1).tolist() or [0]:
        start = max(int(mask[side].int().argmax()), 1)
        prompt, response = ids[side, :start][attention[side, :start]], ids[side, start:][attention[side, start:]]
        responses.append(response if len(response) else ids[side, -1:])
    first, second = responses[0], responses[-1]
    if second[0] == first[0]:
        second = second.flip(0)
    if second[0] == first[0]:
        others = batch.input_ids[batch.attention_mask & (batch.input_ids != first[0])]
        second = torch.cat([others[:1], second])
    return (prompt if len(prompt) else first[:1]), [first, second]
