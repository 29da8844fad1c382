"""Cases that laws are checked on: every leaf of every interface, collected automatically, and batches of pairs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lit_align.objectives import (
    Alpha,
    Anchor,
    Averaging,
    ClampedKL,
    ConditionalMatching,
    Contrast,
    Divergence,
    DynamicBeta,
    LengthGap,
    LengthPower,
    Logistic,
    LostLikelihood,
    NoiseContrast,
    Objective,
    OnPolicy,
    Pointwise,
    PreferenceObjective,
    Refinement,
    Regularizer,
    RejectedShare,
    ResponseObjective,
    Reweighted,
    SelfRefine,
    SharedLength,
    SumOf,
    TargetMargin,
    Term,
    WeightedSum,
    bco,
    dpo,
    sr_dpo,
)
from lit_align.objectives.presets import PRESETS
from lit_align.types import PairLogProbs

EXAMPLES: dict[type, dict[str, Any]] = {
    Alpha: {"alpha": 0.5},
    ClampedKL: {"low": -4.0, "high": 4.0},  # wide enough for random pairs, not for corner cases
    ConditionalMatching: {"alpha": 0.3},
    DynamicBeta: {"objective": sr_dpo()},
    LengthGap: {"strength": 0.2},
    LengthPower: {"power": 0.5},
    LostLikelihood: {"strength": 0.6},
    RejectedShare: {"strength": 0.25},
    PreferenceObjective: {"contrast": Logistic()},
    ResponseObjective: {"loss": NoiseContrast()},
    Reweighted: {"objective": sr_dpo(), "weighting": OnPolicy()},
    SelfRefine: {"strength": 0.7},
    SharedLength: {"weight": 0.3},
    SumOf: {"parts": (SelfRefine(0.3), LostLikelihood(0.4), TargetMargin(0.1))},
    TargetMargin: {"target": 0.4},
    WeightedSum: {"terms": (Term("refined", sr_dpo()), Term("none", dpo(), 0.0), Term("each", bco(), 0.5))},
}
"""Arguments for leaves that cannot be built without; a new leaf of that kind needs a line here."""

AXES: dict[str, type] = {
    "contrast": Contrast,
    "averaging": Averaging,
    "refinement": Refinement,
    "regularizer": Regularizer,
    "divergence": Divergence,
}
"""The fields of the joint and the interface of each."""

RESPONSE_AXES: dict[str, type] = {
    "loss": Pointwise,
    "averaging": Averaging,
    "regularizer": Regularizer,
    "divergence": Divergence,
    "anchor": Anchor,
}
"""The same for the joint that judges each response."""


def leaves(interface: type) -> list[type]:
    """Return the concrete subclasses of an interface in this package, at any depth."""
    found: list[type] = []
    for below in interface.__subclasses__():
        found += leaves(below)
        if not inspect.isabstract(below) and below.__module__.startswith("lit_align."):
            found.append(below)
    return found


def buildable(leaf: type) -> bool:
    """Return whether a leaf can be built from its defaults and its example arguments."""
    try:
        inspect.signature(leaf).bind(**EXAMPLES.get(leaf, {}))
    except TypeError:
        return False
    return True


def parts(interface: type) -> list[Any]:
    """Return an instance of each leaf of an interface."""
    return [leaf(**EXAMPLES.get(leaf, {})) for leaf in leaves(interface) if buildable(leaf)]


def published() -> dict[str, Callable[..., Objective]]:
    """Return the presets by name."""
    return {name: preset.make for name, preset in PRESETS.items()}


def one_exchanged(joint: Any, axes: dict[str, type]) -> list[Any]:
    """Return an objective with one part replaced at a time."""
    return [replace(joint, **{axis: part}) for axis, interface in axes.items() for part in parts(interface)]


def preference_objectives() -> list[PreferenceObjective]:
    """Return DPO with one part replaced at a time, and every preset of its class, without duplicates."""
    known = [preset() for preset in published().values()]
    margins = [objective for objective in known if isinstance(objective, PreferenceObjective)]
    return list(dict.fromkeys([*one_exchanged(PreferenceObjective(Logistic()), AXES), *margins]))


def objectives() -> list[Objective]:
    """Return composed objectives with one part replaced at a time, other objectives and presets; no duplicates."""
    joints = [
        *preference_objectives(),
        *one_exchanged(ResponseObjective(NoiseContrast()), RESPONSE_AXES),
    ]
    return list(dict.fromkeys([*joints, *parts(Objective), *(preset() for preset in published().values())]))


def every_combination() -> Iterator[Objective]:
    """Iterate over every choice of one leaf per axis; anchors, which are only subtracted, keep their default."""
    response_axes = {axis: interface for axis, interface in RESPONSE_AXES.items() if axis != "anchor"}
    for joint, axes in ((PreferenceObjective, AXES), (ResponseObjective, response_axes)):
        for choice in product(*(parts(interface) for interface in axes.values())):
            yield joint(**dict(zip(axes, choice, strict=True)))


def lengths_to_mask(lengths: Tensor, width: int) -> Tensor:
    """Return a mask in which scored tokens come first."""
    return torch.arange(width) < lengths[..., None]


def random_pairs(seed: int = 0, pairs: int = 6, width: int = 7, dtype: torch.dtype = torch.float32) -> PairLogProbs:
    """Return a batch with responses of 1 to ``width`` tokens and everything that objectives need; 0 on padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = lengths_to_mask(torch.randint(1, width + 1, (pairs, 2), generator=generator), width)

    def log_probs() -> Tensor:
        return torch.where(mask, -3 * torch.rand(pairs, 2, width, generator=generator, dtype=dtype), 0.0)

    pair_seed = torch.randint(-(2**62), 2**62, (pairs,), generator=generator)
    policy, reference = log_probs(), log_probs()
    return PairLogProbs(
        policy=policy,
        reference=reference,
        mask=mask,
        prompted=PairLogProbs(policy=log_probs(), reference=log_probs(), mask=mask, pair_seed=pair_seed),
        mismatched=PairLogProbs(
            policy=log_probs(), reference=log_probs() - 0.5 * mask, mask=mask, pair_seed=pair_seed
        ),
        collision=log_probs() / 2,
        pair_seed=pair_seed,
    )


def corner_pairs() -> PairLogProbs:
    """Return responses of one token with log-probabilities of 0 or -300, which give log-ratios of 0 and ±300."""
    corners = torch.tensor(list(product([0.0, -300.0], repeat=4)))
    policy, reference = corners[:, :2, None], corners[:, 2:, None]
    mask = torch.ones_like(policy, dtype=torch.bool)
    other = PairLogProbs(policy=policy.flip(0), reference=reference, mask=mask, pair_seed=torch.arange(len(policy)))
    return replace(other, policy=policy, prompted=other, mismatched=other, collision=policy.flip(1))


def each_tensor(logps: PairLogProbs, change: Callable[[Tensor], Tensor]) -> PairLogProbs:
    """Return the record with every tensor of tokens changed, also those of nested records."""
    return _changed(logps, lambda value: change(value) if value.dim() > 1 else value)


def some_pairs(logps: PairLogProbs, which: slice | Tensor) -> PairLogProbs:
    """Return some rows of the batch, in the given order."""
    return _changed(logps, lambda value: value[which])


def _changed(logps: PairLogProbs, change: Callable[[Tensor], Tensor]) -> PairLogProbs:
    changed = {field.name: getattr(logps, field.name) for field in fields(logps)}
    for name, value in changed.items():
        if isinstance(value, PairLogProbs):
            changed[name] = _changed(value, change)
        elif isinstance(value, Tensor):
            changed[name] = change(value)
    return PairLogProbs(**changed)


def with_gradient(logps: PairLogProbs) -> PairLogProbs:
    """Return the record with a policy that requires a gradient."""
    return replace(logps, policy=logps.policy.detach().clone().requires_grad_())


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    """Return the gradient of a summed loss; zeros where the loss does not depend on the tensor."""
    if not loss.requires_grad:
        return torch.zeros_like(of)
    (found,) = torch.autograd.grad(loss.sum(), of, allow_unused=True, materialize_grads=True)
    return found


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Assert that outcomes are equal bit for bit, up to the sign of zero."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
