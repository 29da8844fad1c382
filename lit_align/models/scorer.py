"""A scorer says what a response is worth: a reward model, a known function, or any Python function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn

from lit_align.models.loading import Loading
from lit_align.models.logps.scores import ReadScores, TokenScores
from lit_align.models.score_model import ScoreModel, load_score_model
from lit_align.models.sharding import Build, build_whole, together
from lit_align.types import PairBatch, PairScores, ResponseScore, RolloutScores

LONGEST = 300


class ScoreError(RuntimeError):
    """Scores that cannot be trained on; raised before any step is taken with them."""


@dataclass(frozen=True)
class Texts:
    """Prompts and responses as text, one of each for every row."""

    prompts: Sequence[str]
    responses: Sequence[str]


class Scorer(ABC):
    """From responses to scores. It is no ``nn.Module``: nothing that hangs on it is trained or saved."""

    def load(self, policy: str, build: Build = build_whole) -> None:  # noqa: B027
        """Read what is needed, once, before training; nothing unless a leaf says otherwise.

        Args:
            policy: name of the policy whose tokens will be scored.
            build: makes a model of what reads it.
        """

    def ready(self) -> AbstractContextManager[None]:
        """In which scores are asked for; every process enters it as often as the others, whatever it has to ask."""
        return nullcontext()

    def read_with(self, read: ReadScores) -> None:  # noqa: B027
        """Read a score model otherwise than in padded rows, to the same numbers; none is there unless a leaf says so.

        Args:
            read: gives the scores of a batch under a score model.
        """

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:  # noqa: B027
        """Move or cast weights along with the policy's; there are none unless a leaf says otherwise."""

    @abstractmethod
    def __call__(self, batch: PairBatch, texts: Texts) -> Any:
        """One number for each response; what comes back is checked by ``checked``.

        Args:
            batch: prompts with responses as ids.
            texts: the same as text, for those who read.
        """


@final
class RewardModel(Scorer):
    """A trained reward model of the same tokens as the policy.

    Args:
        path: folder that ``task: reward`` has written, or a hub name of a sequence classification model.
        loading: how to read it.
        batch_size: responses per forward pass.
    """

    def __init__(self, path: str, loading: Loading = Loading(), batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"RewardModel: batch_size is {batch_size}; expected 1 or more")
        self.path = path
        self.loading = loading
        self.batch_size = batch_size
        self._model: ScoreModel | None = None
        self._read: ReadScores = _in_padded_rows

    def __repr__(self) -> str:
        return f"RewardModel(path={self.path!r})"

    def load(self, policy: str, build: Build = build_whole) -> None:
        """Read the frozen model."""
        self._model = build(lambda: load_score_model(self.path, self.loading).requires_grad_(False))

    def ready(self) -> AbstractContextManager[None]:
        """In which a model that is cut is whole."""
        return nullcontext() if self._model is None else together(self._model)

    def read_with(self, read: ReadScores) -> None:
        """See the base class."""
        self._read = read

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast its weights."""
        if self._model is not None:
            move: Any = self._model._apply
            move(change)

    @torch.no_grad()
    def __call__(self, batch: PairBatch, texts: Texts) -> Tensor:
        """See the base class."""
        if self._model is None:
            raise RuntimeError("the reward model is not loaded yet; load(policy) comes first")
        count = len(batch.input_ids)
        parts = [
            self._read(self._model, batch.rows(slice(start, start + self.batch_size)))
            for start in range(0, count, self.batch_size)
        ]
        return torch.cat(parts).flatten()


def _in_padded_rows(model: nn.Module, batch: PairBatch) -> PairScores:
    return TokenScores(model).scores(batch)


@final
@dataclass(frozen=True)
class KnownScore(Scorer):
    """A score that is known, of a world that has one.

    Args:
        score: for instance ``TestbedScore``.
    """

    score: ResponseScore

    def __call__(self, batch: PairBatch, texts: Texts) -> list[float]:
        """See the base class."""
        return self.score(texts.prompts, texts.responses)


@final
@dataclass(frozen=True)
class FunctionScore(Scorer):
    """Any function of two lists of texts.

    Args:
        function: import path of ``f(prompts, responses)``, which gives one finite number for each response. Code that
            is not the package's own must be named on the command line (``--extend``).
    """

    function: Callable[[Sequence[str], Sequence[str]], Sequence[float]]

    def __call__(self, batch: PairBatch, texts: Texts) -> Any:
        """See the base class."""
        return self.function(texts.prompts, texts.responses)


def checked(values: Any, texts: Texts, scorer: Scorer) -> RolloutScores:
    """Scores as a tensor in float32.

    Args:
        values: what a scorer gave.
        texts: what it was asked about.
        scorer: who it was, for messages.

    Raises:
        ScoreError: not one finite number for each response; names the first prompt concerned.

    >>> checked([1, 2.5], Texts(["a", "b"], ["x", "y"]), FunctionScore(lambda prompts, responses: [0.0]))
    tensor([1.0000, 2.5000])
    """
    name, wanted = type(scorer).__name__, len(texts.prompts)
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ScoreError(f"{name} gave {type(values).__name__}; expected a list of {wanted} numbers")
    if len(values) != wanted:
        raise ScoreError(
            f"{name} gave {len(values)} scores for {wanted} responses; expected one for each. The first prompt is "
            f"{_shown(texts.prompts[0])}"
        )
    for row, value in enumerate(values):
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not math.isfinite(float(value)):
            found = value if number else f"{type(value).__name__} {_shown(str(value))}"
            raise ScoreError(
                f"{name} gave {found} for the response {_shown(texts.responses[row])} to the prompt "
                f"{_shown(texts.prompts[row])}; expected a finite number. No step was taken with it"
            )
    return torch.tensor([float(value) for value in values])


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
