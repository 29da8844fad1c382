"""The frozen reference, and the models it may be: a second model, a moving copy, the policy with its adapter off."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lit_align.compat.peft import PeftModel
from lit_align.errors import check_range
from lit_align.models.loading import Loading, load_causal_lm
from lit_align.models.logps.plain import response_log_probs
from lit_align.models.narrow import evaluating, narrow_weights
from lit_align.models.sharding import unsharded
from lit_align.types import PairBatch, PairTokens

Read: TypeAlias = Callable[[nn.Module, PairBatch], PairTokens]
"""From a model and a batch to the log-probabilities of the scored tokens."""


class Reference(ABC):
    """A frozen model beside the policy.

    It is deliberately not an ``nn.Module``: its weights are in no state dict, no optimizer, no gradient
    synchronisation and no checkpoint, and ``module.train()`` does not reach it.
    """

    @abstractmethod
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        """Take what is needed from the freshly loaded policy; called once, before training."""

    @abstractmethod
    def active(self) -> AbstractContextManager[nn.Module]:
        """Return a context in which the reference is available as a model in evaluation mode."""

    @contextmanager
    def ready(self) -> Iterator[nn.Module]:
        """Like ``active``, with a sharded model gathered once; every process must enter it equally often."""
        with self.active() as active:
            model = active
        with unsharded(model), self.active() as active:
            yield active

    @abstractmethod
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the weights along with the policy's (``nn.Module._apply``)."""

    def narrow(self, dtype: torch.dtype, policy: nn.Module) -> None:
        """Keep weights that never change in the dtype that autocast reads them in; does nothing by default.

        Args:
            dtype: of autocast.
            policy: its weights, which a copy may share, are left alone.
        """
        return

    @property
    def copies_policy(self) -> bool:
        """Whether it is the policy as it was loaded, at least until the first step; False by default."""
        return False

    @property
    def moves(self) -> bool:
        """Whether it changes during training; False by default."""
        return False

    @property
    def is_start(self) -> bool:
        """Whether it is the policy as it was before its first step, throughout the run."""
        return self.copies_policy and not self.moves

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Follow the policy after an optimizer step; does nothing by default.

        Args:
            policy: as it is after the step.
            step: number of steps taken, this one included.
        """
        return

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep: nothing unless it moves."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what ``state_dict`` returned: nothing unless it moves."""
        return

    @abstractmethod
    def read_with(self, read: Read) -> None:
        """Replace ``response_log_probs`` by another function that computes the same numbers.

        Args:
            read: computes the log-probabilities of a batch under a model.
        """

    @abstractmethod
    def log_probs(self, batch: PairBatch) -> PairTokens:
        """Compute log-probabilities of the scored response tokens, without gradient; see ``response_log_probs``."""


class LiveReference(Reference):
    """A reference whose model is in memory, and is called for every batch."""

    _read: Read = staticmethod(response_log_probs)

    @final
    @override
    def read_with(self, read: Read) -> None:
        self._read = read

    @final
    @torch.no_grad()
    @override
    def log_probs(self, batch: PairBatch) -> PairTokens:
        with self.active() as model:
            return self._read(model, batch)


class ModelReference(LiveReference):
    """A reference with weights of its own."""

    _model: nn.Module | None = None

    @final
    @contextmanager
    @override
    def active(self) -> Iterator[nn.Module]:
        yield _attached(self._model)

    @final
    @override
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._model is not None:
            apply: Any = self._model._apply
            apply(change)


class SecondModel(ModelReference):
    """A separate model: a frozen copy of the policy as it was loaded, or another model.

    A copy of a policy with an adapter has the same base weights in memory, unless the policy is sharded.

    Args:
        path: local folder or hub name of the reference; None copies the policy.
        loading: how another model is loaded.

    Raises:
        ValueError: there is a ``loading`` without a ``path``.
    """

    def __init__(self, path: str | None = None, loading: Loading = Loading()) -> None:
        check_loading(type(self).__name__, path, loading)
        self.path = path
        self.loading = loading

    @property
    @override
    def copies_policy(self) -> bool:
        return self.path is None

    @override
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        if self.path is None:
            model: nn.Module = _copy(policy)
        else:
            other = load_causal_lm(self.path, self.loading)
            ours, theirs = policy.config.vocab_size, other.config.vocab_size
            if ours != theirs:
                raise ValueError(f"reference {self.path}: vocabulary of {theirs}, but the policy's has {ours}")
            model = other
        self._model = model.requires_grad_(False).eval()

    @override
    def narrow(self, dtype: torch.dtype, policy: nn.Module) -> None:
        if self._model is not None:
            narrow_weights(self._model, dtype, keep=policy)


def _copy(policy: nn.Module) -> nn.Module:
    """Copy a model's trainable weights, and share those that do not change."""
    shared = {id(weight): weight for weight in policy.parameters() if not weight.requires_grad}
    return copy.deepcopy(policy, shared)


class MovingReference(ModelReference):
    r"""A copy of the policy that follows it: $\pi_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\pi_{ref}$.

    Paper: TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656, which calls ``mixing`` α and ``every`` τ: a soft update
    has α below 1, a hard one has α = 1. The mean is that of the weights. A run that uses it keeps a second set of
    weights in every checkpoint. The defaults are TRL's, which uses both numbers at once.

    Args:
        every: optimizer steps between two updates.
        mixing: the policy's share in an update, above 0 and at most 1; summaries of the paper name 0.6 for the soft
            update. 1 copies the policy.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, every: int = 512, mixing: float = 0.6) -> None:
        check_range("MovingReference: every", every, 1)
        if not 0 < mixing <= 1:
            raise ValueError(f"MovingReference: mixing is {mixing}; expected 0 < mixing <= 1")
        self.every = every
        self.mixing = mixing

    @property
    @override
    def copies_policy(self) -> bool:
        return True

    @property
    @override
    def moves(self) -> bool:
        return True

    @override
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        if isinstance(policy, PeftModel):  # the mean of two adapters is not the adapter of the mean
            raise ValueError("reference MovingReference: expected a policy without adapter; leave model.lora out")
        if self.mixing < 1 and any(weight.itemsize < torch.float32.itemsize for weight in policy.parameters()):
            raise ValueError(
                f"MovingReference: mixing is {self.mixing}, and the policy's weights are in 16 bits, where most of "
                "such a mean is rounded away; take model.loading.dtype float32, or mixing 1"
            )
        self._model = copy.deepcopy(policy).requires_grad_(False).eval()

    @torch.no_grad()
    @override
    def after_step(self, policy: nn.Module, step: int) -> None:
        if step % self.every == 0:
            ours: list[Tensor] = list(_attached(self._model).parameters())
            theirs: list[Tensor] = list(policy.parameters())
            if self.mixing == 1:
                torch._foreach_copy_(ours, theirs)
            else:
                torch._foreach_lerp_(ours, theirs, self.mixing)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in _attached(self._model).named_parameters()}

    @torch.no_grad()
    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        weights = dict(_attached(self._model).named_parameters())
        if weights.keys() != state.keys():
            raise ValueError("the checkpoint's reference is not a model like this run's (model.reference)")
        for name, weight in weights.items():
            weight.copy_(state[name])


class AdapterOff(LiveReference):
    """The policy itself with its LoRA adapter switched off: needs no memory."""

    def __init__(self) -> None:
        self._policy: PeftModel | None = None

    @property
    @override
    def copies_policy(self) -> bool:
        return True

    @override
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        if not isinstance(policy, PeftModel):
            raise ValueError("reference AdapterOff: the policy has no adapter; set model.lora, or take SecondModel")
        self._policy = policy

    @contextmanager
    @override
    def active(self) -> Iterator[nn.Module]:
        # Evaluation mode switches the adapter's dropout off, whatever the policy's mode.
        policy = _attached(self._policy)
        frozen = {name for name, weight in policy.named_parameters() if not weight.requires_grad}
        try:
            with evaluating(policy), policy.disable_adapter():
                yield policy
        finally:
            for name, weight in policy.named_parameters():  # PEFT lets all of the adapter's be trained again
                if name in frozen:
                    weight.requires_grad_(False)

    @override
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        pass  # the weights are the policy's


def _attached(model: Any) -> Any:
    if model is None:
        raise RuntimeError("the reference has no model yet; attach(policy) comes first")
    return model


def check_loading(name: str, path: str | None, loading: Loading) -> None:
    """Raise if a reference that copies the policy is told how to load a model.

    Args:
        name: of the reference's class.
        path: of the model; None for a copy of the policy.
        loading: how it would be loaded.

    Raises:
        ValueError: there is a ``loading`` without a ``path``.
    """
    if path is None and loading != Loading():
        raise ValueError(
            f"{name}: loading is {loading}, but without a path the reference is a copy of the policy as it was "
            "loaded: name the model's path, or leave loading out"
        )
