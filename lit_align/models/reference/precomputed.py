"""A reference whose log-probabilities are computed once, kept on disk, and looked up by the ids they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from lit_align.compat.peft import PeftModel
from lit_align.compat.transformers import attention_name
from lit_align.errors import check_range
from lit_align.files import at_home, code_digest, user_cache
from lit_align.models.adapters import has_saved_adapter
from lit_align.models.loading import Loading
from lit_align.models.quantization import is_quantized
from lit_align.models.reference.base import AdapterOff, Read, Reference, SecondModel, check_loading
from lit_align.models.reference.cache import ReferenceCache, sequence_keys
from lit_align.models.sharding import weights_wanted
from lit_align.types import PairBatch, PairTokens

AUTO = "auto"
TOLERANCE = 1e-3
"""Nats by which a token's float32 log-probability may differ between batches and libraries."""
ROUGH_TOLERANCE = 0.25
"""The same at 16 bits: a logit near 20 is rounded by up to 0.06."""


class Precomputed(Reference):
    """Log-probabilities that are computed once, before the first step, and read from disk from then on.

    They are found by content: the reference's weights and configuration, the precision, the code that computes them
    (this package's models, PyTorch, transformers, PEFT), and the ids of a sequence with its scored tokens. Objective,
    batch size, order of the rows, learning rate or tokenizer settings that leave the ids alone do not matter; whatever
    changes a value leads to another entry. Values are per token, so all averagings read the same ones. Once all are on
    disk the reference's weights are released.

    It pays from the second epoch or run on, or by the memory of a second model.

    Args:
        path: local folder or hub name of the reference; None takes the policy as it was loaded, without an adapter.
        loading: how another model is loaded.
        cache: folder of the values; ``auto`` for ``reference`` in ``LIT_ALIGN_CACHE`` or ``~/.cache/lit_align``.
        checked_rows: number of random rows on disk that are computed again before they are trusted; 0 for none.

    Raises:
        ValueError: ``checked_rows`` is negative, or there is a ``loading`` without a ``path``.
    """

    def __init__(
        self, path: str | None = None, loading: Loading = Loading(), cache: str = AUTO, checked_rows: int = 8
    ) -> None:
        check_range("Precomputed: checked_rows", checked_rows, 0)
        check_loading("Precomputed", path, loading)
        self.path = path
        self.loading = loading
        self.cache = cache
        self.checked_rows = checked_rows
        self._source: Reference | None = None
        self.identity: Mapping[str, Any] = {}
        self._precision: dict[str, str] = {}
        self._store: ReferenceCache | None = None

    # ── the reference ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    @override
    def copies_policy(self) -> bool:
        return self.path is None

    @override
    def attach(self, policy: PreTrainedModel | PeftModel) -> None:
        copies_adapted = self.path is None and isinstance(policy, PeftModel) and not has_saved_adapter(policy)
        self._source = AdapterOff() if copies_adapted else SecondModel(self.path, self.loading)
        self._source.attach(policy)
        if weights_wanted():
            with self._source.active() as model:
                self.identify(model)

    def identify(self, model: nn.Module) -> None:
        """Set the identity of the model whose log-probabilities these are."""
        self.identity = model_identity(model)

    @contextmanager
    @override
    def active(self) -> Iterator[nn.Module]:
        if self._source is None:
            raise RuntimeError("the reference has no model: attach(policy) comes first, and release() gives it back")
        with self._source.active() as model:
            yield model

    @override
    def read_with(self, read: Read) -> None:
        if self._source is not None:
            self._source.read_with(read)

    @override
    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._source is not None:
            self._source.apply(change)

    @torch.no_grad()
    @override
    def log_probs(self, batch: PairBatch) -> PairTokens:
        """Look the values up.

        Raises:
            ValueError: values are missing; names the rows.
            RuntimeError: no cache is open yet, or the precision is not the one that the values were computed in.
        """
        device = batch.input_ids.device
        if precision(device) != self._precision:
            raise RuntimeError(
                f"log-probs are kept in {self._precision or 'no cache yet'}, not in {precision(device)}"
            )
        batch = batch.to("cpu")
        keys, lengths = sequence_keys(batch), batch.lengths.flatten().numpy()
        present = lengths > 0
        unknown = present & ~self.store.known(keys)
        if unknown.any():
            rows = sorted(set(batch.index.numpy().repeat(batch.mask.shape[1])[unknown].tolist()))
            raise ValueError(f"reference log-probs of rows {rows[:10]} are not in {self.store.folder}")
        values = np.zeros((len(keys), int(lengths.max(initial=0))), self.store.dtype)
        values[present] = self.store.read(keys[present], values.shape[1])
        return torch.from_numpy(values).view(*batch.mask.shape[:2], -1).to(device, non_blocking=True)

    # ── the cache ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def store(self) -> ReferenceCache:
        """The values on disk."""
        if self._store is None:
            raise RuntimeError("the reference has no cache yet; open(device) comes first")
        return self._store

    def open(self, device: torch.device) -> None:
        """Open the cache of this reference at the current precision, autocast included."""
        self._precision = precision(device)
        root = user_cache() / "reference" if self.cache == AUTO else at_home(self.cache)
        dtype = "float64" if self.identity["dtype"] == "float64" else "float32"
        self._store = ReferenceCache(root, {**self.identity, **self._precision}, dtype)

    def missing(self, batch: PairBatch) -> NDArray[np.bool_]:
        """Return which rows need values that are not on disk, ``[pair]``."""
        missing = np.zeros(len(batch.index), np.bool_)
        for part in _parts(batch):
            unknown = _has_scored_token(part) & ~self.store.known(sequence_keys(part))
            missing |= unknown.reshape(len(batch.index), -1).any(1)
        return missing

    def compute(self, batch: PairBatch, keep: bool = True) -> None:
        """Compute the values of a batch, and of its prompted and mismatched pairs.

        Args:
            batch: the pairs.
            keep: False only runs the model, so that processes that share its weights stay in step.

        Raises:
            ValueError: a value is not finite; names the row.
        """
        for part in _parts(batch):
            values = self._computed(part)
            if keep:
                present = _has_scored_token(part)
                self.store.add(
                    sequence_keys(part)[present],
                    [row for row, is_present in zip(values, present, strict=True) if is_present],
                )

    def check(self, batch: PairBatch) -> None:
        """Compute values again and compare them with those on disk.

        Raises:
            ValueError: they differ by more than rounding; names the row and both values.
        """
        rough = self.identity["dtype"] not in ("float32", "float64") or self._precision["autocast"] != "none"
        tolerance = ROUGH_TOLERANCE if rough else TOLERANCE
        for part in _parts(batch):
            saved = self.log_probs(part).flatten(0, 1).cpu().numpy()
            for row, (old, new) in enumerate(zip(saved, self._computed(part), strict=True)):
                difference = np.abs(old[: len(new)] - new)
                if difference.max(initial=0.0) > tolerance:
                    place, index = int(difference.argmax()), int(part.index[row // part.mask.shape[1]])
                    raise ValueError(
                        f"{self.store.folder}: row {index}, scored token {place}: kept is {old[place]:.6f}, the "
                        f"reference says {new[place]:.6f}; the values are not this model's as it runs here. Remove "
                        "the folder to compute them again"
                    )

    @property
    def has_weights(self) -> bool:
        """Whether values can still be computed."""
        return self._source is not None

    def release(self) -> None:
        """Release the weights; from then on values can only be looked up."""
        self._source = None

    def _computed(self, part: PairBatch) -> list[NDArray[Any]]:
        """Compute the values of each sequence, without padding."""
        if self._source is None:
            raise RuntimeError("the reference's weights were given back")
        values = self._source.log_probs(part).flatten(0, 1).cpu().numpy().astype(self.store.dtype)
        part = part.on_host
        lengths = part.lengths.flatten().tolist()
        rows = [row[:length] for row, length in zip(values, lengths, strict=True)]
        for number, row in enumerate(rows):
            if not np.isfinite(row).all():
                index = int(part.index[number // part.mask.shape[1]])
                raise ValueError(f"reference: the log-probs of row {index} are not finite; nothing of it is kept")
        return rows


def _parts(batch: PairBatch) -> list[PairBatch]:
    return [part for part in (batch, batch.prompted, batch.mismatched) if part is not None]


def _has_scored_token(batch: PairBatch) -> NDArray[np.bool_]:
    """Return which sequences have a scored token; an absent side has none."""
    present: NDArray[np.bool_] = batch.mask.any(-1).flatten().cpu().numpy()
    return present


def precision(device: torch.device) -> dict[str, str]:
    """Describe the current precision of arithmetic, apart from the dtype of the weights.

    Args:
        device: that computes.

    >>> precision(torch.device("cpu"))
    {'device': 'cpu', 'autocast': 'none', 'matmul': 'highest'}
    """
    enabled = torch.is_autocast_enabled(device.type)
    autocast = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.") if enabled else "none"
    return {"device": device.type, "autocast": autocast, "matmul": torch.get_float32_matmul_precision()}


def model_identity(model: nn.Module) -> Mapping[str, Any]:
    """Describe what a model's log-probabilities depend on: class, configuration, attention, dtype, weights.

    The model's path, and a new adapter, which is switched off, do not matter; one that was loaded does.

    Args:
        model: a causal language model of transformers, with or without an adapter of PEFT.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    saved = has_saved_adapter(model)
    quantizers = ["bitsandbytes"] if any(map(is_quantized, base.parameters())) else []
    config = {key: value for key, value in base.config.to_dict().items() if key not in _NOT_IN_VALUES}
    return {
        "code": code_digest(Path(__file__).parents[1]),
        "libraries": {name: version(name) for name in ("torch", "transformers", "peft", *quantizers)},
        "class": type(base).__name__,
        "config": config,
        "attention": attention_name(base),
        "dtype": str(base.dtype).removeprefix("torch."),
        "weights": _weights_digest(base, saved),
        **({"adapter": _adapter_settings(model)} if saved else {}),
    }


_NOT_IN_VALUES = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "architectures")


def _adapter_settings(model: Any) -> dict[str, Any]:
    """Return the settings of an adapter that change what its weights give, as text."""
    settings: dict[str, Any] = model.peft_config["default"].to_dict()
    return {key: repr(value) for key, value in sorted(settings.items()) if key not in _NOT_IN_ADAPTER}


_NOT_IN_ADAPTER = ("base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "target_modules")


def _weights_digest(model: nn.Module, with_adapter: bool) -> str:
    digest = hashlib.sha256()
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(state.items()):
        if with_adapter or "lora_" not in name:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
