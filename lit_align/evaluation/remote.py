"""Responses of a model behind an endpoint, of which there are no weights and no log-probabilities here."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_align.evaluation.client import Endpoint, EndpointClient
from lit_align.evaluation.judges import JudgeError
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.record import RESPONSES, RowFile
from lit_align.evaluation.respond import SETTINGS, EvaluationResponse, progress
from lit_align.models.sampling import Sampling, mix_seed

REMOTE = "openai:"
"""What the name of a model behind an endpoint begins with."""


def remote_identity(path: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return what a model behind an endpoint is known by."""
    return {"kind": "endpoint", "model": path.removeprefix(REMOTE), "endpoint": endpoint.shown_url}


def responses_from_endpoint(
    path: str,
    endpoint: Endpoint,
    prompts: Sequence[EvaluationPrompt],
    seeds: Sequence[int],
    sampling: Sampling,
    folder: Path,
) -> list[EvaluationResponse]:
    """Ask an endpoint for a response to each prompt with each seed; those that are on disk already are read.

    Messages go to the endpoint's chat completions, whose template is the endpoint's own, and plain texts to its
    completions. Whether the same seed gives the same response again is up to the endpoint.

    Args:
        path: ``openai:MODEL``.
        endpoint: where and how it is asked.
        prompts: to respond to.
        seeds: of the responses.
        sampling: length, temperature and top-p.
        folder: for the responses.

    Returns:
        By prompt, then by seed, without ids of tokens.

    Raises:
        JudgeError: the endpoint refuses, gives up, or does not count tokens. What has been answered is on disk.
    """
    client = EndpointClient(path.removeprefix(REMOTE), endpoint, "model")
    options = asdict(sampling)
    del options["seed"]
    settings = {"model": remote_identity(path, endpoint), "sampling": options}
    file = RowFile(folder / RESPONSES, settings, folder / SETTINGS)
    texts = {prompt.index: prompt.text for prompt in prompts}
    rows = [EvaluationResponse(**row) for row in file.rows]
    known = {row.key: row for row in rows if texts.get(row.index) == row.prompt}
    wanted = [(prompt, seed) for prompt in prompts for seed in seeds]
    missing = [(prompt, seed) for prompt, seed in wanted if (prompt.index, seed) not in known]

    def respond(prompt: EvaluationPrompt, seed: int) -> EvaluationResponse:
        row = _respond(client, prompt, seed, sampling)
        with client.lock:
            file.add([asdict(row)])
            advance(1)
        return row

    with (
        progress(f"{client.model}: responses", len(wanted), len(wanted) - len(missing)) as advance,
        ThreadPoolExecutor(endpoint.workers) as pool,
    ):
        futures = [pool.submit(respond, prompt, seed) for prompt, seed in missing]
        try:
            known |= {row.key: row for row in (future.result() for future in futures)}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [known[prompt.index, seed] for prompt, seed in wanted]


def _respond(client: EndpointClient, prompt: EvaluationPrompt, seed: int, sampling: Sampling) -> EvaluationResponse:
    """Ask for one response."""
    options: dict[str, Any] = {
        "model": client.model,
        "seed": mix_seed(seed, prompt.index) % 2**31,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    asked: Any = prompt.pair.prompt
    if isinstance(asked, str):
        completion = client.ask(lambda library: library.completions.create(prompt=asked, **options))
    else:
        completion = client.ask(lambda library: library.chat.completions.create(messages=list(asked), **options))
    try:
        choice = completion.choices[0]
        text = choice.text if isinstance(asked, str) else choice.message.content
        tokens = int(completion.usage.completion_tokens)
    except (IndexError, AttributeError, TypeError) as error:
        raise JudgeError(f"{client.model}: the endpoint's answer has no text or count of tokens: {error}") from None
    return EvaluationResponse(
        index=prompt.index,
        seed=seed,
        prompt=prompt.text,
        response=text or "",
        tokens=tokens,
        ended=choice.finish_reason == "stop",
        prompt_ids=[],
        ids=[],
    )
