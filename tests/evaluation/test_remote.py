"""Responses of a model behind an endpoint: what is asked, what is kept, and what an evaluation makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_align.cli import main
from lit_align.evaluation.client import Endpoint
from lit_align.evaluation.evaluate import PromptEvaluation, ResponseSettings
from lit_align.evaluation.judges import JudgeError
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.evaluation.remote import responses_from_endpoint
from lit_align.models.sampling import Sampling, mix_seed
from lit_align.types import PreferencePair
from tests.evaluation.test_endpoint import KEY, Reply, Server
from tests.runner import forked

SAMPLING = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9)
CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"})
PROMPTS = [
    EvaluationPrompt(number, PreferencePair(prompt, None, None, f"rows:{number}"))
    for number, prompt in enumerate(["Once upon", CHAT])
]


def reply(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
    """Answer like a server that runs a model: texts to completions, messages to chat completions."""
    chat = "messages" in body
    said = {"message": {"role": "assistant", "content": "Yes."}} if chat else {"text": f" a time {body['seed'] % 2}"}
    content = {
        "id": "1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop" if chat else "length", **said}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
    }
    return 200, {}, content


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], Server]]:
    monkeypatch.setenv("MODEL_KEY", KEY)
    servers: list[Server] = []

    def start(answer: Reply) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()


def ask(server: Server, folder: Path, **options: Any) -> list[Any]:
    endpoint = Endpoint(server.url, "MODEL_KEY", wait=0.0, **options)
    return responses_from_endpoint("openai:mine", endpoint, PROMPTS, (0, 1), SAMPLING, folder)


def test_texts_and_messages_are_asked_for_with_seed_and_sampling(
    serve: Callable[[Reply], Server], tmp_path: Path
) -> None:
    server = serve(reply)
    rows = ask(server, tmp_path)
    assert [(row.key, row.tokens, row.ended) for row in rows] == [
        *(((0, seed), 3, False) for seed in (0, 1)),
        *(((1, seed), 3, True) for seed in (0, 1)),
    ]
    assert {row.response for row in rows if row.index == 1} == {"Yes."}
    seeds = {mix_seed(seed, index) % 2**31 for index in (0, 1) for seed in (0, 1)}
    assert {body["seed"] for body in server.requests} == seeds
    assert all((body["max_tokens"], body["temperature"], body["top_p"]) == (7, 0.5, 0.9) for body in server.requests)
    assert [body["messages"] for body in server.requests if "messages" in body] == [list(CHAT)] * 2
    assert [body["prompt"] for body in server.requests if "prompt" in body] == ["Once upon"] * 2
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in "".join(file.read_text() for file in tmp_path.iterdir() if file.is_file())


def test_what_was_answered_is_not_asked_for_again(serve: Callable[[Reply], Server], tmp_path: Path) -> None:
    """After a failure in the middle the rest is asked for."""
    broken = True

    def sometimes(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
        return (400, {}, {"error": {"message": "no"}}) if broken and number > 2 else reply(body, number)

    server = serve(sometimes)
    with pytest.raises(JudgeError, match=r"^the model mine at http://127.0.0.1:\d+/v1 failed: 400"):
        ask(server, tmp_path, workers=1)
    assert len((tmp_path / "responses.jsonl").read_text().splitlines()) == 2
    broken, before = False, len(server.requests)
    assert len(ask(server, tmp_path)) == 4
    assert len(server.requests) == before + 2


def test_an_answer_without_a_count_of_tokens_is_refused(serve: Callable[[Reply], Server], tmp_path: Path) -> None:
    def uncounted(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
        status, headers, content = reply(body, number)
        return status, headers, {**content, "usage": None}

    with pytest.raises(JudgeError, match=r"^mine: the endpoint's answer has no text or count of tokens"):
        ask(serve(uncounted), tmp_path)


def test_an_evaluation_measures_it_without_loading_anything(serve: Callable[[Reply], Server], tmp_path: Path) -> None:
    def load(path: str, name: str) -> Any:
        raise AssertionError(path)

    evaluation = PromptEvaluation(
        {"mine": "openai:mine"},
        load,
        settings=ResponseSettings((0, 1), SAMPLING, resamples=20),
        endpoint=Endpoint(serve(reply).url, "MODEL_KEY"),
    )
    (model,) = evaluation(PROMPTS, tmp_path).models
    assert model.metrics["length/tokens"].value == 3
    assert "entropy" not in model.metrics
    assert model.path == "openai:mine"


def test_the_command_asks_the_endpoint_and_refuses_what_needs_weights(
    serve: Callable[[Reply], Server], tmp_path: Path
) -> None:
    server = serve(reply)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once upon"}\n')
    words = ["openai:mine", "--model_url", server.url, "--model_key", "MODEL_KEY", "--resamples", "20"]
    words += ["--into", str(tmp_path / "into")]
    done, refused = (
        forked([lambda more=more: main(["evaluate", *words, *more])])[0]
        for more in (["--prompts", str(tmp_path / "prompts.jsonl")], ["--pairs", "testbed:test"])
    )
    assert done.code == 0, done.out
    (model,) = json.loads((tmp_path / "into" / "evaluation.json").read_text())["models"]
    assert model["path"] == "openai:mine"
    assert refused.code == 2
    assert "openai:mine stands behind an endpoint, which writes responses to --prompts" in refused.out
