"""The frozen reference: where its log-probabilities come from is asked here and nowhere else."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias, final

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_align.models.loading import Loading, load_causal_lm
from lit_align.models.logps.plain import response_log_probs
from lit_align.models.sharding import unsharded
from lit_align.types import PairBatch, PairTokens

Read: TypeAlias = Callable[[nn.Module, PairBatch], PairTokens]
"""From a model and a batch to the log-probabilities of the scored tokens."""


class Reference(ABC):
    """A frozen model beside the policy.

    It is no ``nn.Module`` on purpose: what hangs on it is in no state dict, no optimizer, no gradient
    synchronisation, no checkpoint, and ``module.train()`` does not reach it.
    """

    @abstractmethod
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        """Take what is needed from the freshly loaded policy; called once, before training."""

    @abstractmethod
    def active(self) -> AbstractContextManager[nn.Module]:
        """The reference as a model in evaluation mode, for as long as the context lasts."""

    @contextmanager
    def ready(self) -> Iterator[nn.Module]:
        """As ``active``, a cut model being put together once; every process enters it as often as the others."""
        with self.active() as model:
            found = model
        with unsharded(found), self.active() as model:
            yield model

    @abstractmethod
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the weights along with the policy's (``nn.Module._apply``)."""

    @property
    def copies_policy(self) -> bool:
        """Whether it is the policy as it was loaded, until the first step at least; False unless a leaf says so."""
        return False

    @property
    def moves(self) -> bool:
        """Whether it changes during training; False unless a leaf says so."""
        return False

    @property
    def is_start(self) -> bool:
        """Whether it is the policy before its first step, and stays that."""
        return self.copies_policy and not self.moves

    def after_step(self, policy: nn.Module, step: int) -> None:
        """Hear of an optimizer step; nothing unless a leaf says otherwise.

        Args:
            policy: as it is after the step.
            step: how many steps there have been, this one included.
        """
        return

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of it: nothing where it does not move."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state_dict`` gave; nothing where it does not move."""
        return

    @abstractmethod
    def read_with(self, read: Read) -> None:
        """Read the model in another way than ``response_log_probs``, to the same numbers.

        Args:
            read: gives the log-probabilities of a batch under a model.
        """

    @abstractmethod
    def log_probs(self, batch: PairBatch) -> PairTokens:
        """Log-probabilities of the scored response tokens, without gradient; see ``response_log_probs``."""


class LiveReference(Reference):
    """A reference whose model is there, and is read for every batch."""

    _read: Read = staticmethod(response_log_probs)

    @final
    def read_with(self, read: Read) -> None:
        """See the base class."""
        self._read = read

    @final
    @torch.no_grad()
    def log_probs(self, batch: PairBatch) -> PairTokens:
        """See the base class."""
        with self.active() as model:
            return self._read(model, batch)


class SecondModel(LiveReference):
    """A model of its own: a frozen copy of the policy as it was loaded, or another model.

    Args:
        path: local folder or hub name of the reference; None copies the policy.
        loading: how to read it, if it is read.

    Raises:
        ValueError: there is a ``loading`` without a ``path``.
    """

    def __init__(self, path: str | None = None, loading: Loading = Loading()) -> None:
        check_loading(type(self).__name__, path, loading)
        self.path = path
        self.loading = loading
        self._model: nn.Module | None = None

    @property
    def copies_policy(self) -> bool:
        """Without a path."""
        return self.path is None

    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        """Copy the policy, or load the other model and check that both speak of the same tokens."""
        if self.path is None:
            model: nn.Module = copy.deepcopy(policy)
        else:
            other = load_causal_lm(self.path, self.loading)
            ours, theirs = policy.config.vocab_size, other.config.vocab_size
            if ours != theirs:
                raise ValueError(f"reference {self.path}: vocabulary of {theirs}, but the policy's has {ours}")
            model = other
        self._model = model.requires_grad_(False).eval()

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The frozen model."""
        if self._model is None:
            raise RuntimeError("the reference has no model yet; attach(policy) comes first")
        yield self._model

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the frozen weights."""
        if self._model is not None:
            move: Any = self._model._apply
            move(change)


def check_loading(name: str, path: str | None, loading: Loading) -> None:
    """Raise if it is said how to read a model that is a copy.

    Args:
        name: of the reference's class.
        path: of the model; None for a copy of the policy.
        loading: how it would be read.

    Raises:
        ValueError: it is.
    """
    if path is None and loading != Loading():
        raise ValueError(
            f"{name}: loading is {loading}, but without a path the reference is a copy of the policy as it was "
            "loaded: name the model's path, or leave loading out"
        )


class MovingReference(LiveReference):
    r"""A copy of the policy that follows it: $\pi_{ref} \leftarrow \alpha\,\theta + (1 - \alpha)\,\pi_{ref}$.

    Paper: TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656, which calls ``mixing`` α and ``every`` τ: a soft update
    has α below 1, a hard one has α = 1. The mean is taken of the weights. A run that uses it keeps a second set of
    weights in every checkpoint. The defaults are TRL's, which takes both numbers at once.

    Args:
        every: optimizer steps between two updates.
        mixing: how much of the policy goes into the reference, above 0 and at most 1; summaries of the paper
            name 0.6 for the soft update. 1 copies the policy.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, every: int = 512, mixing: float = 0.6) -> None:
        if every < 1:
            raise ValueError(f"MovingReference: every is {every}; expected 1 or more")
        if not 0 < mixing <= 1:
            raise ValueError(f"MovingReference: mixing is {mixing}; expected 0 < mixing <= 1")
        self.every = every
        self.mixing = mixing
        self._model: nn.Module | None = None

    @property
    def copies_policy(self) -> bool:
        """Before its first update."""
        return True

    @property
    def moves(self) -> bool:
        """Every ``every`` steps."""
        return True

    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        """Copy the policy, which must have no adapter: the mean of two adapters is not the adapter of the mean."""
        if isinstance(policy, PeftModel):
            raise ValueError("reference MovingReference: expected a policy without adapter; leave model.lora out")
        if self.mixing < 1 and any(weight.itemsize < torch.float32.itemsize for weight in policy.parameters()):
            raise ValueError(
                f"MovingReference: mixing is {self.mixing}, and the policy's weights are in 16 bits, where most of "
                "such a mean is rounded away; take model.loading.dtype float32, or mixing 1"
            )
        self._model = copy.deepcopy(policy).requires_grad_(False).eval()

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The model as of its last update."""
        yield self._attached()

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the weights."""
        if self._model is not None:
            move: Any = self._model._apply
            move(change)

    @torch.no_grad()
    def after_step(self, policy: nn.Module, step: int) -> None:
        """Move towards the policy if it is time."""
        if step % self.every == 0:
            ours: list[Tensor] = list(self._attached().parameters())
            theirs: list[Tensor] = list(policy.parameters())
            if self.mixing == 1:
                torch._foreach_copy_(ours, theirs)
            else:
                torch._foreach_lerp_(ours, theirs, self.mixing)

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights."""
        return {name: weight.detach() for name, weight in self._attached().named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights over.

        Raises:
            ValueError: they are not those of such a model.
        """
        ours = dict(self._attached().named_parameters())
        if ours.keys() != state.keys():
            raise ValueError("the checkpoint's reference is not a model like this run's (model.reference)")
        for name, weight in ours.items():
            weight.copy_(state[name])

    def _attached(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the reference has no model yet; attach(policy) comes first")
        return self._model


class AdapterOff(LiveReference):
    """The policy itself with its LoRA adapter switched off: costs no memory."""

    def __init__(self) -> None:
        self._policy: PeftModel | None = None

    @property
    def copies_policy(self) -> bool:
        """Always."""
        return True

    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        """Remember the policy, which must have an adapter."""
        if not isinstance(policy, PeftModel):
            raise ValueError("reference AdapterOff: the policy has no adapter; set model.lora, or take SecondModel")
        self._policy = policy

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy without its adapter and, whatever the policy's mode, without its dropout."""
        if self._policy is None:
            raise RuntimeError("the reference has no model yet; attach(policy) comes first")
        training = self._policy.training
        self._policy.eval()
        try:
            with self._policy.disable_adapter():
                yield self._policy
        finally:
            self._policy.train(training)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Nothing to move: the weights are the policy's."""
