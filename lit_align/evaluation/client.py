"""Requests to a language model behind an endpoint that speaks OpenAI's protocol."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from lit_align.errors import check_range
from lit_align.evaluation.judges import JudgeError

LONGEST_WAIT = 60.0
NO_KEY = "none"


class BudgetError(JudgeError):
    """The requests that were allowed are used up."""


@dataclass
class Usage:
    """What an endpoint has done: answered requests, failed tries, tokens by its own count, unreadable answers."""

    requests: int = 0
    retries: int = 0
    tokens: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how.

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


class EndpointClient:
    """Sends requests to an endpoint, again where that may help, and counts them.

    The key is read from the environment; it is neither written nor shown.

    Args:
        model: name of the model at the endpoint.
        endpoint: where and how it is asked.
        role: what the model is here, for messages.

    Raises:
        ModuleNotFoundError: openai is not installed; names the extra.
        ValueError: there is no key.
    """

    def __init__(self, model: str, endpoint: Endpoint, role: str = "judge") -> None:
        self.model, self.endpoint, self.role = model, endpoint, role
        self.usage = Usage()
        self.lock = threading.Lock()
        self._key = _read_key(endpoint.key_variable, endpoint.url, role)
        self._library = _openai(role)
        self._client = self._library.OpenAI(
            api_key=self._key or NO_KEY, base_url=endpoint.url, max_retries=0, timeout=endpoint.timeout
        )
        self._started = 0

    def ask(self, create: Callable[[Any], Any]) -> Any:
        """Return what a request gives.

        Args:
            create: sends the request with the library's client.

        Raises:
            JudgeError: the endpoint refuses, gives up, or answers with something else; or the budget is used up.
        """
        for attempt in range(self.endpoint.retries + 1):
            self._spend()
            try:
                completion = create(self._client)
            except self._library.APIError as error:
                if attempt == self.endpoint.retries or not self._is_passing(error):
                    raise JudgeError(self._message(error, attempt)) from None
                with self.lock:
                    self.usage.retries += 1
                time.sleep(self._pause(error, attempt))
                continue
            except (AttributeError, TypeError, ValueError) as error:
                raise JudgeError(f"{self.model}: the endpoint's answer is no completion: {error}") from None
            with self.lock:
                self.usage.requests += 1
                self.usage.tokens += getattr(getattr(completion, "usage", None), "total_tokens", 0) or 0
            return completion
        raise AssertionError("the last try returns or raises")

    def _spend(self) -> None:
        with self.lock:
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
        code = "" if status is None else f"{status}: "
        return f"the {self.role} {self.model} at {where} failed{tries}: {code}{text}"


def _read_key(variable: str, base_url: str | None, role: str) -> str:
    key = os.environ.get(variable, "")
    if not key and base_url is None:
        raise ValueError(
            f"no key for the {role}: set the environment variable {variable}, or base_url for another server"
        )
    return key


def _without_user(url: str) -> str:
    """Return a URL without user name and password.

    >>> _without_user("https://me:secret@host:8000/v1")
    'https://host:8000/v1'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _openai(role: str) -> Any:
    if find_spec("openai") is None:
        raise ModuleNotFoundError(f"a {role} behind an endpoint needs openai: pip install 'lit-align[eval]'")
    return import_module("openai")
