"""A judge as the score of an on-policy run: by its scores, or by how often a response wins against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import final

from typing_extensions import override

from lit_align.evaluation.judges import Judge, JudgeError, make_judge
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.models.loading import Loading
from lit_align.models.scorer import ScoreError, Scorer, Texts
from lit_align.types import PairBatch


@final
class JudgeScore(Scorer):
    """Rates responses by a judge of the command ``evaluate``.

    A judge that compares sees every two different responses to a prompt once, and the score of a response is its mean
    rate of wins against the others; equal responses tie without being shown to it.

    Args:
        judge: ``testbed``, ``reward:FOLDER``, ``scores:module.function``, ``compares:module.function``, ``llm:MODEL``.
        loading: of a reward model.
        device: of a reward model.
    """

    def __init__(self, judge: str, loading: Loading = Loading(), device: str = "cpu") -> None:
        self.setting = judge
        self.loading = loading
        self.device = device
        _ = self.judge  # what cannot be a judge is refused before any model is loaded

    def __repr__(self) -> str:
        return f"JudgeScore(judge={self.setting!r})"

    @cached_property
    def judge(self) -> Judge:
        """The judge; a reward model is loaded on first use."""
        return make_judge(self.setting, self.loading, self.device)

    @property
    @override
    def compares(self) -> bool:
        return not self.judge.scores_alone

    @override
    def __call__(self, batch: PairBatch, texts: Texts) -> list[float]:
        try:
            return self.judge.scores(_prompts_of(texts), texts.responses)
        except JudgeError as error:
            raise ScoreError(str(error)) from error

    @override
    def wins(self, texts: Texts, count: int) -> list[list[list[float]]]:
        prompts, responses = _prompts_of(texts), texts.responses
        starts = range(0, len(responses), count)
        pairs = [
            (start + first, start + second)
            for start in starts
            for second in range(count)
            for first in range(second)
            if responses[start + first] != responses[start + second]
        ]
        firsts, seconds = ([pair[side] for pair in pairs] for side in (0, 1))
        chosen = [[responses[place] for place in side] for side in (firsts, seconds)]
        try:
            verdicts = self.judge.comparisons([prompts[place] for place in firsts], *chosen) if pairs else []
        except JudgeError as error:
            raise ScoreError(str(error)) from error
        wins = [[[0.5] * count for _ in range(count)] for _ in starts]
        for (first, second), verdict in zip(pairs, verdicts, strict=True):
            group, own, other = first // count, first % count, second % count
            wins[group][own][other], wins[group][other][own] = verdict, 1 - verdict
        return wins


def _prompts_of(texts: Texts) -> Sequence[EvaluationPrompt]:
    rows = zip(texts.pairs, range(len(texts.pairs)), strict=True)
    return [EvaluationPrompt(place, replace(pair, chosen=None, rejected=None)) for pair, place in rows]
