"""The frozen reference: where its log-probabilities come from is asked here and nowhere else."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_align.models.loading import Loading, load_causal_lm
from lit_align.models.log_probs import response_log_probs
from lit_align.types import PairBatch, PairTokens


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

    @abstractmethod
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the weights along with the policy's (``nn.Module._apply``)."""

    @torch.no_grad()
    def log_probs(self, batch: PairBatch) -> PairTokens:
        """Log-probabilities of the scored response tokens, without gradient; see ``response_log_probs``."""
        with self.active() as model:
            return response_log_probs(model, batch)


class SecondModel(Reference):
    """A model of its own: a frozen copy of the policy as it was loaded, or another model.

    Args:
        path: local folder or hub name of the reference; None copies the policy.
        loading: how to read it, if it is read.
    """

    def __init__(self, path: str | None = None, loading: Loading = Loading()) -> None:
        self.path = path
        self.loading = loading
        self._model: nn.Module | None = None

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


class AdapterOff(Reference):
    """The policy itself with its LoRA adapter switched off: costs no memory."""

    def __init__(self) -> None:
        self._policy: PeftModel | None = None

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
