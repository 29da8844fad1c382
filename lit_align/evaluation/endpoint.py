"""A language model as judge, behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, final

from typing_extensions import override

from lit_align.errors import shown
from lit_align.evaluation.client import Endpoint, EndpointClient
from lit_align.evaluation.judges import Judge, JudgeError
from lit_align.evaluation.judging import AnswerCache, Question
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.respond import progress
from lit_align.files import at_home

TEMPLATE = """\
Compare two answers to an instruction, and say which one is better. Judge by how well each does what was asked: whether
it is correct, complete, and free of what was not asked for. A longer answer is not better for its length.

<instruction>
{prompt}
</instruction>

<answer_1>
{answer_1}
</answer_1>

<answer_2>
{answer_2}
</answer_2>

Think briefly, then end with one line: [[1]] if the first answer is better, [[2]] if the second one is, [[tie]] if they
are equally good."""
FIELDS = ("prompt", "answer_1", "answer_2")
_VERDICT = re.compile(r"\[\[\s*(1|2|tie)\s*\]\]", re.IGNORECASE)
_PLACE = re.compile(r"\{(prompt|answer_1|answer_2)\}")
_VALUES = {"1": 1.0, "2": 0.0, "tie": 0.5}
AnswerPair: TypeAlias = tuple[str, str, str]
"""Prompt, first answer, second answer."""


def read_judge_template(path: str | None) -> str:
    """Read the template of the question to a judge; None for the default.

    Args:
        path: of a text file with ``{prompt}``, ``{answer_1}`` and ``{answer_2}``; other braces are text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is missing.
    """
    if path is None:
        return TEMPLATE
    file = at_home(path)
    if not file.is_file():
        raise FileNotFoundError(f"judge_template {path} does not exist; expected a text file")
    text = file.read_text("utf-8")
    missing = [name for name in FIELDS if f"{{{name}}}" not in text]
    if missing:
        raise ValueError(f"{path}: {{{missing[0]}}} is missing; expected {{prompt}}, {{answer_1}} and {{answer_2}}")
    return text


def read_verdict(answer: str) -> float | None:
    """Return the last verdict of an answer: 1 for the first, 0 for the second, 0.5 for a tie; None without one.

    >>> read_verdict("I say [[2]] ... no, [[1]]"), read_verdict("[[Tie]]"), read_verdict("the first")
    (1.0, 0.5, None)
    """
    verdicts = _VERDICT.findall(answer)
    return _VALUES[verdicts[-1].lower()] if verdicts else None


@final
class EndpointJudge(Judge):
    """Asks a language model which of two answers is better, in both orders.

    The comparison is the mean of both verdicts: a judge that prefers whatever comes first says nothing. Answers are
    kept on disk and never asked for twice.

    Args:
        model: name of the model at the endpoint.
        endpoint: where and how it is asked.

    Raises:
        ModuleNotFoundError: openai is not installed; names the extra.
        ValueError: there is no key.
    """

    scores_alone = False
    keeps_answers = True

    def __init__(self, model: str, endpoint: Endpoint = Endpoint()) -> None:
        self.model = model
        self.endpoint = endpoint
        self.template = read_judge_template(endpoint.template)
        self.cache = AnswerCache(endpoint.cache)
        self.client = EndpointClient(model, endpoint)
        self.usage = self.client.usage

    @property
    @override
    def description(self) -> dict[str, Any]:
        return {
            "kind": "llm",
            "model": self.model,
            "endpoint": self.endpoint.shown_url,
            "template": hashlib.sha256(self.template.encode()).hexdigest(),
            "options": dict(self.endpoint.options),
            "orders": 2,
        }

    @override
    def comparisons(
        self, prompts: Sequence[EvaluationPrompt], responses: Sequence[str], baseline: Sequence[str]
    ) -> list[float]:
        """Ask in both orders.

        Raises:
            JudgeError: the endpoint refuses, gives up, or never answers with a verdict; or the budget is used up. What
                has been answered is on disk.
        """
        texts = [(p.text, ours, theirs) for p, ours, theirs in zip(prompts, responses, baseline, strict=True)]
        orders = [*texts, *((prompt, theirs, ours) for prompt, ours, theirs in texts)]
        missing = [order for order in dict.fromkeys(orders) if self.cache.get(self._question(order)) is None]
        total = len(set(orders))
        with (
            progress(f"{self.model}: comparisons", total, total - len(missing)) as advance,
            ThreadPoolExecutor(self.endpoint.workers) as pool,
        ):
            futures = [pool.submit(self._ask, self._question(order), advance) for order in missing]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        verdicts = [read_verdict(self.cache.get(self._question(order)) or "") for order in orders]
        unreadable = sum(verdict is None for verdict in verdicts)
        self.usage.unreadable += unreadable
        if unreadable > len(verdicts) / 2:
            answer = shown(self.cache.get(self._question(orders[verdicts.index(None)])), 120)
            raise JudgeError(
                f"{unreadable} of {len(verdicts)} answers of {self.model} have no verdict [[1]], [[2]] or [[tie]], "
                f"such as {answer}; expected a template that asks for one, and enough max_tokens"
            )
        values = [0.5 if verdict is None else verdict for verdict in verdicts]
        return [
            (first + 1 - second) / 2 for first, second in zip(values[: len(texts)], values[len(texts) :], strict=True)
        ]

    @override
    def notes(self) -> list[str]:
        count = self.usage.unreadable
        return [f"{count} answers of {self.model} had no verdict and count as ties"] if count else []

    def _question(self, order: AnswerPair) -> Question:
        fields = dict(zip(FIELDS, order, strict=True))
        text = _PLACE.sub(lambda match: fields[match[1]], self.template)
        options = json.dumps(dict(self.endpoint.options), sort_keys=True)
        return Question(self.model, self.endpoint.shown_url, text, options)

    def _ask(self, question: Question, advance: Callable[[int], None]) -> None:
        message = [{"role": "user", "content": question.text}]
        completion = self.client.ask(
            lambda client: client.chat.completions.create(model=self.model, messages=message, **self.endpoint.options)
        )
        try:
            text = completion.choices[0].message.content
        except (IndexError, AttributeError, TypeError) as error:
            raise JudgeError(f"{self.model}: the endpoint's answer is no chat completion: {error}") from None
        self.cache.put(question, text or "")
        with self.client.lock:
            advance(1)
