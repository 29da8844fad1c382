"""A language model as judge, behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias, final
from urllib.parse import urlsplit, urlunsplit

from typing_extensions import override

from lit_align.errors import check_range, shown
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
LONGEST_WAIT = 60.0
NO_KEY = "none"
AnswerPair: TypeAlias = tuple[str, str, str]
"""Prompt, first answer, second answer."""


class BudgetError(JudgeError):
    """The requests that were allowed are used up."""


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


@dataclass
class Usage:
    """What a judge has used: answered requests, failed tries, tokens by the endpoint's count, unreadable answers."""

    requests: int = 0
    retries: int = 0
    tokens: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class Endpoint:
    """Where a judge is asked, and how.

    Args:
        base_url: of the endpoint; None takes ``OPENAI_BASE_URL``, or OpenAI's own.
        key_variable: environment variable with the key; other servers than OpenAI's may need none.
        template: file with the question; None takes ``TEMPLATE``.
        options: of the request, such as ``{"temperature": 0, "max_tokens": 512}``.
        cache: file with the answers so far; None keeps nothing.
        budget: most requests of this process, failed ones included; None for no limit.
        retries: tries after a failed one, where trying again can help.
        workers: requests at a time.
        timeout: seconds that an answer may take.
        wait: seconds before the first retry, doubled with each one.
    """

    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    template: str | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})
    cache: Path | None = None
    budget: int | None = None
    retries: int = 6
    workers: int = 8
    timeout: float = 120.0
    wait: float = 1.0

    def __post_init__(self) -> None:
        check_range("judge_budget", self.budget, 1)
        check_range("judge_workers", self.workers, 1)
        check_range("judge_retries", self.retries, 0)

    @property
    def url(self) -> str | None:
        """The endpoint; None for OpenAI's own."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL")

    @property
    def shown_url(self) -> str:
        """The endpoint without user name and password."""
        return "OpenAI" if self.url is None else _without_user(self.url)


@final
class EndpointJudge(Judge):
    """Asks a language model which of two answers is better, in both orders.

    The comparison is the mean of both verdicts: a judge that prefers whatever comes first says nothing. Answers are
    kept on disk and never asked for twice. The key is read from the environment; it is neither written nor shown.

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
        self.usage = Usage()
        self.cache = AnswerCache(endpoint.cache)
        self._key = _read_key(endpoint.key_variable, endpoint.url)
        self._library = _openai()
        self._client = self._library.OpenAI(
            api_key=self._key or NO_KEY, base_url=endpoint.url, max_retries=0, timeout=endpoint.timeout
        )
        self._lock = threading.Lock()
        self._started = 0

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
        for attempt in range(self.endpoint.retries + 1):
            self._spend()
            try:
                completion = self._client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": question.text}], **self.endpoint.options
                )
                text = completion.choices[0].message.content
            except self._library.APIError as error:
                if attempt == self.endpoint.retries or not self._is_passing(error):
                    raise JudgeError(self._message(error, attempt)) from None
                with self._lock:
                    self.usage.retries += 1
                time.sleep(self._pause(error, attempt))
                continue
            except (IndexError, AttributeError, TypeError, ValueError) as error:
                raise JudgeError(f"{self.model}: the endpoint's answer is no chat completion: {error}") from None
            with self._lock:
                self.usage.requests += 1
                self.usage.tokens += getattr(completion.usage, "total_tokens", 0) or 0
            self.cache.put(question, text or "")
            with self._lock:
                advance(1)
            return

    def _spend(self) -> None:
        with self._lock:
            self._started += 1
            if self.endpoint.budget is not None and self._started > self.endpoint.budget:
                raise BudgetError(
                    f"judge_budget: {self.endpoint.budget} requests are used up; what was answered is kept, "
                    "and starting again asks for the rest"
                )

    def _is_passing(self, error: Any) -> bool:
        """Return whether the same request may succeed later."""
        status = getattr(error, "status_code", None)
        return status is None or status in (408, 409, 425, 429) or status >= 500

    def _pause(self, error: Any, attempt: int) -> float:
        """Return how long to wait: what the endpoint asks for, or twice as long each time, with some noise."""
        headers = getattr(getattr(error, "response", None), "headers", {})
        try:
            asked = float(headers.get("retry-after", 0))
        except ValueError:
            asked = 0.0
        backoff = float(self.endpoint.wait * 2**attempt) * random.uniform(0.75, 1.25)
        return min(max(asked, backoff), LONGEST_WAIT)

    def _message(self, error: Any, attempt: int) -> str:
        text = str(error).replace(self._key, "…") if self._key else str(error)
        status = getattr(error, "status_code", None)
        where = self.endpoint.shown_url
        tries = f" after {attempt + 1} tries" if attempt else ""
        return f"the judge {self.model} at {where} failed{tries}: {'' if status is None else f'{status}: '}{text}"


def _read_key(variable: str, base_url: str | None) -> str:
    key = os.environ.get(variable, "")
    if not key and base_url is None:
        raise ValueError(
            f"no key for the judge: set the environment variable {variable}, or base_url for another server"
        )
    return key


def _without_user(url: str) -> str:
    """Return a URL without user name and password.

    >>> _without_user("https://me:secret@host:8000/v1")
    'https://host:8000/v1'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _openai() -> Any:
    if find_spec("openai") is None:
        raise ModuleNotFoundError("a judge behind an endpoint needs openai: pip install 'lit-align[eval]'")
    return import_module("openai")
