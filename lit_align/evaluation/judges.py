"""Judges of responses: by a score of each, or by comparing two."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, final

import torch
from typing_extensions import override

from lit_align.data.batches.collate import Collate
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.errors import shown
from lit_align.evaluation.models import tokenize_whole, weight_files
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.extensions import import_trusted
from lit_align.files import at_home, digest
from lit_align.locate import tokenizer_source
from lit_align.models.loading import Loading
from lit_align.models.logps.scores import ScoreReader
from lit_align.models.score_model import ScoreModel, load_score_model
from lit_align.testbed.truth import TestbedScore
from lit_align.types import TokenizedPair

JUDGE_KINDS = ("testbed", "reward:FOLDER", "scores:module.function", "compares:module.function", "llm:MODEL")
"""What a judge may be, as it is written on the command line."""
ScoreFunction: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class JudgeError(RuntimeError):
    """A judge has failed, or has given what is no judgement."""


class Judge(ABC):
    """The interface to a judge.

    Class attributes:
        scores_alone: whether it scores a response by itself; otherwise it only compares two.
        keeps_answers: whether it keeps its answers on disk itself.
        at_once: most responses that it is asked about at a time, where its judgements are kept.
        margin: scores that differ by no more than this tie.
    """

    scores_alone: ClassVar[bool]
    keeps_answers: ClassVar[bool] = False
    at_once: int = 256
    margin: float = 0.0

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What tells it from other judges, for the settings in ``evaluation.json``."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that its judgements depend on beside prompts and responses."""
        return self.description

    def order(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> Sequence[int]:
        """Return the order in which responses are judged; as they come by default."""
        return range(len(prompts))

    def scores(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> list[float]:
        """Return a finite number for each response; higher is better."""
        raise NotImplementedError(f"{type(self).__name__} only compares")

    def comparisons(
        self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str], baseline: Sequence[str]
    ) -> list[float]:
        """Return for each prompt 1 if the first response is better, 0 if the baseline's is, 0.5 for a tie.

        Numbers between say how sure the judge is. A judge that scores has its scores compared.
        """
        raise NotImplementedError(f"{type(self).__name__} only scores")

    def notes(self) -> list[str]:
        """Return what a reader of the numbers must know; nothing by default."""
        return []


class ScoringJudge(Judge):
    """A judge that scores each response by itself.

    Args:
        margin: scores that differ by no more than this tie.
    """

    scores_alone = True

    def __init__(self, margin: float = 0.0) -> None:
        self.margin = margin


@final
class FunctionJudge(ScoringJudge):
    """Any function of prompts and responses as texts.

    Args:
        function: returns one finite number for each response.
        name: for the settings.
        margin: scores that differ by no more than this tie.
    """

    def __init__(self, function: ScoreFunction, name: str, margin: float = 0.0) -> None:
        super().__init__(margin)
        self.function = function
        self.name = name

    @property
    @override
    def description(self) -> dict[str, Any]:
        return {"kind": "scores", "name": self.name, "margin": self.margin}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return self.description | {"code": code_of(self.function)}

    @override
    def scores(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> list[float]:
        texts = [prompt.text for prompt in prompts]
        values = _call(self.name, self.function, texts, list(responses))
        return _checked(self.name, values, prompts, "a finite number", math.isfinite)


def code_of(function: Callable[..., Any]) -> str | None:
    """Return a digest of the file that a function is written in; None where that is not known."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    file = None if module is None else getattr(module, "__file__", None)
    return None if file is None or not Path(file).is_file() else digest(Path(file))


def _call(name: str, function: Callable[..., Sequence[float]], *texts: list[str]) -> list[float]:
    """Call a function of a user's own; what it raises is a failure of the judge."""
    try:
        return list(function(*texts))
    except Exception as error:
        raise JudgeError(f"{name} raised {type(error).__name__}: {error}") from error


def _checked(
    name: str,
    values: list[float],
    prompts: Sequence[EvaluationPrompt],
    expected: str,
    accepts: Callable[[float], bool],
) -> list[float]:
    """Return what a function has given as numbers, if there is a number for each prompt that is accepted."""
    if len(values) != len(prompts):
        raise JudgeError(f"{name} gave {len(values)} numbers for {len(prompts)} prompts; expected one for each")
    for prompt, value in zip(prompts, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, Real) or not accepts(float(value)):
            raise JudgeError(f"{name} gave {shown(value, 60)} for {prompt.pair.where}; expected {expected}")
    return [float(value) for value in values]


@final
class RewardModelJudge(ScoringJudge):
    """A reward model, which reads prompt and response with its own tokenizer, as it was trained.

    Args:
        path: folder that ``task: reward`` has written, whole or an adapter, or a hub name of a sequence classification
            model.
        loading: how it is loaded.
        batch_size: responses per forward pass.
        device: to put it on.
        margin: scores that differ by no more than this tie.
    """

    def __init__(
        self, path: str, loading: Loading = Loading(), batch_size: int = 32, device: str = "cpu", margin: float = 0.0
    ) -> None:
        super().__init__(margin)
        self.path = path
        self.loading = loading
        self.batch_size = batch_size
        self.at_once = 8 * batch_size
        self.device = device

    @property
    @override
    def description(self) -> dict[str, Any]:
        return {"kind": "reward", "path": self.path, "dtype": self.loading.dtype, "margin": self.margin}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return self.description | {"files": weight_files(at_home(self.path))}

    @cached_property
    def model(self) -> ScoreModel:
        """The reward model, loaded on first use."""
        return load_score_model(self.path, self.loading).requires_grad_(False).to(self.device)

    @cached_property
    def encoder(self) -> Encoder:
        """The reward model's own tokenizer."""
        return Encoder(load_tokenizer(tokenizer_source(self.path), self.loading.revision))

    @override
    def order(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> Sequence[int]:
        tokenized = self._tokenized(prompts, responses)
        return sorted(range(len(tokenized)), key=lambda place: len(tokenized[place].prompt))

    def _tokenized(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> list[TokenizedPair]:
        pairs = [with_response(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        return tokenize_whole(self.encoder, pairs)

    @torch.no_grad()
    @override
    def scores(self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str]) -> list[float]:
        tokenized = self._tokenized(prompts, responses)
        order = sorted(range(len(tokenized)), key=lambda place: len(tokenized[place].prompt))
        pad = min(self.encoder.pad, self.model.rows - 1)  # an adapter's base may have no row for a padding token
        collate, reader, values = Collate(pad), ScoreReader(self.model), [0.0] * len(tokenized)
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            batch = collate([(tokenized[place], 1.0) for place in places]).chosen_side().to(self.device)
            for place, value in zip(places, reader.scores(batch).flatten().tolist(), strict=True):
                values[place] = value
        for prompt, value in zip(prompts, values, strict=True):
            if not math.isfinite(value):
                raise JudgeError(f"{self.path} gives {value} for the response to {prompt.pair.where}")
        return values


def with_response(prompt: EvaluationPrompt, response: str) -> Any:
    """Return a pair whose chosen response is a text, as a message if the prompt has messages."""
    chosen: Any = response if isinstance(prompt.pair.prompt, str) else ({"role": "assistant", "content": response},)
    return replace(prompt.pair, chosen=chosen)


@final
@dataclass(frozen=True)
class PairwiseFunction(Judge):
    """Any function of prompts, responses and the baseline's responses as texts.

    Args:
        function: returns a number from 0 to 1 for each prompt; see `Judge.comparisons`.
        name: for the settings.
    """

    scores_alone = False
    function: Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
    name: str

    @property
    @override
    def description(self) -> dict[str, Any]:
        return {"kind": "compares", "name": self.name}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return self.description | {"code": code_of(self.function)}

    @override
    def comparisons(
        self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str], baseline: Sequence[str]
    ) -> list[float]:
        texts = [prompt.text for prompt in prompts]
        values = _call(self.name, self.function, texts, list(responses), list(baseline))
        return _checked(self.name, values, prompts, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def make_judge(
    setting: str, loading: Loading = Loading(), device: str = "cpu", margin: float = 0.0, endpoint: Any = None
) -> Judge:
    """Build a judge from its name on the command line; see ``JUDGE_KINDS``.

    Args:
        setting: kind and name of the judge.
        loading: of a reward model.
        device: of a reward model.
        margin: scores that differ by no more than this tie.
        endpoint: the `Endpoint` of a judge behind one; None for its defaults.

    Raises:
        ValueError: there is no such kind of judge, or it has no such function.
    """
    kind, _, name = setting.partition(":")
    if setting == "testbed":
        return FunctionJudge(TestbedScore(), "testbed", margin)
    if kind == "reward" and name:
        return RewardModelJudge(name, loading, device=device, margin=margin)
    if kind == "scores" and name:
        return FunctionJudge(import_trusted(name, "judge"), name, margin)
    if kind == "compares" and name:
        return PairwiseFunction(import_trusted(name, "judge"), name)
    if kind == "llm" and name:
        module: Any = import_module("lit_align.evaluation.endpoint")
        judge: Judge = module.EndpointJudge(name, endpoint or module.Endpoint())
        return judge
    raise ValueError(f"judge is {shown(setting)}; expected one of {', '.join(JUDGE_KINDS)}")
