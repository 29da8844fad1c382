"""What a process holds from step to step: weights, gradients, optimizer states, and what it exchanges with others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_align.models.sharding import layers
from lit_align.modules import Module
from lit_align.plan.memory import Memory, Moment, Spread
from lit_align.plan.optimizer import rehearse_optimizer
from lit_align.plan.rehearsal import Step


@dataclass(frozen=True)
class Held:
    """Bytes of each process.

    Args:
        parameters: of what is trained.
        frozen: of the models beside it.
        gradients: of what is trained.
        optimizer: its states.
        stepping: what its arithmetic takes for a moment.
        buckets: DDP's copy of the gradients.
        together: what is put together of cut weights while a layer is at work.
        whole: the same while a model stays whole: responses are written and read.
    """

    parameters: int
    frozen: int
    gradients: int
    optimizer: int
    stepping: int
    buckets: int = 0
    together: int = 0
    whole: int = 0

    def moments(self, step: Step, several: bool, apart: int = 0) -> dict[Moment, Memory]:
        """Memory of each moment of an optimizer step.

        Args:
            step: as rehearsed.
            several: whether gradients of several micro-batches or portions are summed up.
            apart: of the gradients, bytes that are summed up apart, as one of the things that a step keeps.
        """
        before = self.gradients - apart
        gradients = before if several else step.gradients
        backward = step.beside if several else step.backward - step.gradients
        return {
            "forward": self._memory(
                gradients=before if several else 0,
                activations=step.activations,
                working=max(0, step.forward - step.activations),
                communication=self.buckets + self.together,
            ),
            "backward": self._memory(
                gradients=gradients,
                activations=min(step.activations, backward),
                working=max(0, backward - step.activations),
                communication=self.buckets + self.together,
            ),
            "step": self._memory(
                gradients=self.gradients, working=step.left + self.stepping, communication=self.buckets
            ),
        }

    def rolling(self, working: int, cache: int = 0) -> Memory:
        """Memory while responses are drawn, and there are no gradients.

        Args:
            working: what lives for a moment.
            cache: keys and values.
        """
        return self._memory(gradients=0, working=working, cache=cache, communication=self.buckets + self.whole)

    def reading(self, working: int, reference: int) -> Memory:
        """Memory while a reference reads the data, before there are gradients or optimizer states.

        Args:
            working: what lives for a moment.
            reference: bytes of its weights.
        """
        return Memory(self.parameters, frozen=reference, working=working, communication=self.together)

    def _memory(
        self, gradients: int, working: int, activations: int = 0, cache: int = 0, communication: int = 0
    ) -> Memory:
        return Memory(
            self.parameters, self.optimizer, self.frozen, gradients, activations, cache, working, communication
        )


def hold(module: Module, frozen: Sequence[nn.Module], spread: Spread) -> Held:
    """Count what is held.

    Args:
        module: with parameters of the right shapes and dtypes; their values are not looked at.
        frozen: models beside it.
        spread: how the run is spread.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    gradients, share = _bytes(trained), spread.share
    kept = rehearse_optimizer(module.optimizer, trained, spread.device)
    alone = spread.processes == 1
    own = own_models(module)
    return Held(
        parameters=_bytes(module.parameters()) // share,
        frozen=sum(_bytes(model.parameters()) for model in frozen) // share,
        gradients=gradients // share,
        optimizer=kept.states // share,
        stepping=kept.working // share,
        buckets=0 if alone or spread.cut else gradients,
        together=_together(own, frozen, spread) if spread.cut and not alone else 0,
        whole=max(_size(model.parameters(), spread) for model in (*own, *frozen)) if spread.cut and not alone else 0,
    )


def own_models(module: Module) -> list[nn.Module]:
    """The models that a module trains: its children that have weights."""
    return [model for model in module.children() if any(True for _ in model.parameters())]


def _together(own: Sequence[nn.Module], frozen: Sequence[nn.Module], spread: Spread) -> int:
    """Weights outside the layers are whole during a pass, two layers at a time, and a layer's gradients in float32.

    What is trained stays so while the frozen models are read, which is done one after the other.
    """
    stays = sum(_outside(model, spread) for model in own) + 2 * max(_layer(model, spread) for model in own)
    read = max((_outside(model, spread) + 2 * _layer(model, spread) for model in frozen), default=0)
    largest = max((p for model in own for p in map(_numbers, layers(model))), default=0)
    return max(stays, read) + 4 * largest


def _outside(model: nn.Module, spread: Spread) -> int:
    return _size(model.parameters(), spread) - sum(_size(layer.parameters(), spread) for layer in layers(model))


def _layer(model: nn.Module, spread: Spread) -> int:
    return max((_size(layer.parameters(), spread) for layer in layers(model)), default=0)


def _numbers(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def _size(weights: Iterable[Tensor], spread: Spread) -> int:
    """Bytes of weights as they are put together."""
    narrow = torch.bfloat16.itemsize
    return sum(p.numel() * (min(narrow, p.element_size()) if spread.narrow else p.element_size()) for p in weights)


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)
