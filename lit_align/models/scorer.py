"""Scorers rate responses: a reward model, a known function, or any Python function."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_align.errors import check_range
from lit_align.models.loading import Loading
from lit_align.models.logps.scores import ReadScores, ScoreReader
from lit_align.models.score_model import ScoreModel, load_score_model
from lit_align.models.sharding import unsharded
from lit_align.types import PairBatch, PairScores, PreferencePair, ResponseScore, RolloutScores

MAX_SHOWN = 300

BuildScoreModel: TypeAlias = Callable[[Callable[[], ScoreModel]], ScoreModel]
"""From a function that loads a score model to the model, whole or sharded."""


class ScoreError(RuntimeError):
    """Scores that cannot be trained on; raised before any step is taken with them."""


@dataclass(frozen=True)
class Texts:
    """Prompts and responses as text, one of each for every row.

    Args:
        prompts: as text.
        responses: as text.
        pairs: the rows of the data that the prompts are from; empty where there is no data.
    """

    prompts: Sequence[str]
    responses: Sequence[str]
    pairs: Sequence[PreferencePair] = ()


def _build_whole(source: Callable[[], ScoreModel]) -> ScoreModel:
    return source()


def _read_padded(model: nn.Module, batch: PairBatch) -> PairScores:
    return ScoreReader(model).scores(batch)


class Scorer(ABC):
    """From responses to scores. It is not an ``nn.Module``: none of its weights are trained or saved."""

    def load(  # noqa: B027
        self, policy: str, build: BuildScoreModel = _build_whole, read: ReadScores = _read_padded
    ) -> None:
        """Load what is needed, once, before training; does nothing by default.

        Args:
            policy: name of the policy whose tokens will be scored.
            build: builds a score model, whole or sharded.
            read: computes the scores of a batch under a score model.
        """

    @property
    def model(self) -> ScoreModel | None:
        """The score model; None by default."""
        return None

    @property
    def compares(self) -> bool:
        """Whether it compares responses to one prompt with each other, by ``wins``; False by default."""
        return False

    def wins(self, texts: Texts, count: int) -> list[list[list[float]]]:
        """Return how sure it is that one response is better than another: ``[prompt][response][other response]``.

        Args:
            texts: responses, those to one prompt side by side.
            count: responses to each prompt.
        """
        raise NotImplementedError(f"{type(self).__name__} compares no responses")

    def ready(self) -> AbstractContextManager[None]:
        """Return the context in which scores are computed; all processes enter it equally often."""
        return nullcontext() if self.model is None else unsharded(self.model)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the model's weights along with the policy's."""
        if self.model is not None:
            apply: Any = self.model._apply
            apply(change)

    @abstractmethod
    def __call__(self, batch: PairBatch, texts: Texts) -> Any:
        """Return one number for each response; ``check_scores`` checks the result.

        Args:
            batch: prompts with responses as ids.
            texts: the same as text.
        """


@final
class RewardModel(Scorer):
    """A trained reward model of the same tokens as the policy.

    Args:
        path: folder that ``task: reward`` has written, whole or an adapter, or a hub name of a sequence classification
            model.
        loading: how it is loaded.
        batch_size: responses per forward pass.
    """

    def __init__(self, path: str, loading: Loading = Loading(), batch_size: int = 64) -> None:
        check_range("RewardModel: batch_size", batch_size, 1)
        self.path = path
        self.loading = loading
        self.batch_size = batch_size
        self._model: ScoreModel | None = None
        self._read: ReadScores = _read_padded

    def __repr__(self) -> str:
        return f"RewardModel(path={self.path!r})"

    @override
    def load(self, policy: str, build: BuildScoreModel = _build_whole, read: ReadScores = _read_padded) -> None:
        self._model = build(lambda: load_score_model(self.path, self.loading).requires_grad_(False))
        self._read = read

    @property
    @override
    def model(self) -> ScoreModel | None:
        return self._model

    @torch.no_grad()
    @override
    def __call__(self, batch: PairBatch, texts: Texts) -> Tensor:
        if self._model is None:
            raise RuntimeError("the reward model is not loaded yet; load(policy) comes first")
        count = len(batch.input_ids)
        parts = [
            self._read(self._model, batch.rows(slice(start, start + self.batch_size)))
            for start in range(0, count, self.batch_size)
        ]
        return torch.cat(parts).flatten()


@final
@dataclass(frozen=True)
class KnownScore(Scorer):
    """The known score of a world that has one.

    Args:
        score: for instance ``TestbedScore``.
    """

    score: ResponseScore

    @override
    def __call__(self, batch: PairBatch, texts: Texts) -> list[float]:
        return self.score(texts.prompts, texts.responses)


@final
@dataclass(frozen=True)
class FunctionScore(Scorer):
    """Any function of two lists of texts.

    Args:
        function: import path of ``f(prompts, responses)``, which gives one finite number for each response. Code that
            is not the package's own must be named on the command line (``--extend``).

    >>> FunctionScore(max)
    FunctionScore(function=builtins.max)
    """

    function: Callable[[Sequence[str], Sequence[str]], Sequence[float]]

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None)
        return (
            f"FunctionScore(function={self.function.__module__}.{name})"
            if name
            else f"FunctionScore({self.function!r})"
        )

    @override
    def __call__(self, batch: PairBatch, texts: Texts) -> Any:
        """Call the function; what it raises fails the run, and not the command line.

        Raises:
            ScoreError: the function has raised; names both.
        """
        try:
            return self.function(texts.prompts, texts.responses)
        except Exception as error:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise ScoreError(f"the score function {name} raised {type(error).__name__}: {error}") from error


def check_scores(values: Any, texts: Texts, scorer: Scorer) -> RolloutScores:
    """Convert scores to a float32 tensor, and check that each is a finite number.

    Raises:
        ScoreError: not one finite number for each response; names the first prompt concerned.

    >>> check_scores([1, 2.5], Texts(["a", "b"], ["x", "y"]), FunctionScore(lambda prompts, responses: [0.0]))
    tensor([1.0000, 2.5000])
    """
    name, count = type(scorer).__name__, len(texts.prompts)
    if isinstance(values, Tensor):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ScoreError(f"{name} gave {type(values).__name__}; expected a list of {count} numbers")
    if len(values) != count:
        raise ScoreError(
            f"{name} gave {len(values)} scores for {count} responses; expected one for each. The first prompt is "
            f"{_shortened(texts.prompts[0])}"
        )
    for row, value in enumerate(values):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(float(value)):
            shown = value if is_number else f"{type(value).__name__} {_shortened(str(value))}"
            raise ScoreError(
                f"{name} gave {shown} for the response {_shortened(texts.responses[row])} to the prompt "
                f"{_shortened(texts.prompts[row])}; expected a finite number. No step was taken with it"
            )
    return torch.tensor([float(value) for value in values])


def _shortened(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")
