from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lit_align.evaluation.client import BudgetError, Endpoint
from lit_align.evaluation.endpoint import TEMPLATE, EndpointJudge, read_judge_template, read_verdict
from lit_align.evaluation.judges import JudgeError
from lit_align.evaluation.prompts import EvaluationPrompt
from lit_align.types import PreferencePair

pytestmark = pytest.mark.slow

KEY = "sk-secret-0123456789"
Reply = Callable[[dict[str, Any], int], tuple[int, dict[str, str], Any]]


def completion(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "judge",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


class Server:
    """A server that speaks the protocol; ``reply`` gets a request and its number."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.keys.add(self.headers["Authorization"])
                    number = len(outer.requests)
                status, headers, content = reply(body, number)
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], Server]]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    servers: list[Server] = []

    def start(reply: Reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def judge(server: Server, **options: Any) -> EndpointJudge:
    settings = {"key_variable": "JUDGE_KEY", "wait": 0.01, "workers": 2} | options
    return EndpointJudge("judge", Endpoint(base_url=server.url, **settings))


def prompts(*texts: str) -> list[EvaluationPrompt]:
    return [
        EvaluationPrompt(place, PreferencePair(text, None, None, f"p:{place}")) for place, text in enumerate(texts)
    ]


def longer_wins(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
    first, second = answers(body)
    verdict = "tie" if len(first) == len(second) else "1" if len(first) > len(second) else "2"
    return 200, {}, completion(f"So I say [[{verdict}]]")


def answers(body: dict[str, Any]) -> tuple[str, str]:
    text = body["messages"][0]["content"]
    first, second = (text.split(f"<answer_{n}>\n")[1].split(f"\n</answer_{n}>")[0] for n in (1, 2))
    return first, second


def test_both_orders_are_asked_and_agree(serve: Callable[[Reply], Server]) -> None:
    server = serve(longer_wins)
    asked = judge(server)
    assert asked.comparisons(prompts("a", "b", "c"), ["long", "x", "yy"], ["s", "long", "zz"]) == [1.0, 0.0, 0.5]
    orders = {answers(body) for body in server.requests}
    assert orders == {("long", "s"), ("s", "long"), ("x", "long"), ("long", "x"), ("yy", "zz"), ("zz", "yy")}
    assert server.keys == {f"Bearer {KEY}"}
    assert all(body["model"] == "judge" and body["temperature"] == 0 for body in server.requests)
    assert (asked.usage.requests, asked.usage.tokens, asked.usage.retries) == (6, 42, 0)


def test_a_judge_that_prefers_a_place_says_nothing(serve: Callable[[Reply], Server]) -> None:
    server = serve(lambda body, number: (200, {}, completion("[[1]]")))
    assert judge(server).comparisons(prompts("a"), ["x"], ["y"]) == [0.5]


def test_rate_limits_and_broken_servers_are_tried_again(serve: Callable[[Reply], Server]) -> None:
    def reply(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
        if number == 1:
            return 429, {"Retry-After": "0.05"}, {"error": {"message": "slow down", "type": "rate_limit"}}
        if number == 2:
            return 503, {}, "down"
        return longer_wins(body, number)

    asked = judge(serve(reply), workers=1)
    assert asked.comparisons(prompts("a"), ["long"], ["s"]) == [1.0]
    assert (asked.usage.requests, asked.usage.retries) == (2, 2)


def test_retries_end_and_say_why(serve: Callable[[Reply], Server]) -> None:
    server = serve(lambda body, number: (429, {}, {"error": {"message": "quota is used up"}}))
    with pytest.raises(JudgeError, match="failed after 3 tries: 429: .*quota is used up"):
        judge(server, retries=2, workers=1).comparisons(prompts("a"), ["x"], ["y"])


def test_a_refusal_is_not_tried_again_and_does_not_show_the_key(serve: Callable[[Reply], Server]) -> None:
    server = serve(lambda body, number: (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with pytest.raises(JudgeError, match="401") as raised:
        judge(server, workers=1).comparisons(prompts("a"), ["x"], ["y"])
    assert KEY not in str(raised.value)
    assert raised.value.__suppress_context__
    assert len(server.requests) <= 2


def test_nobody_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    endpoint = Endpoint("http://127.0.0.1:9/v1", "JUDGE_KEY", retries=1, wait=0.01, workers=1)
    with pytest.raises(JudgeError, match=r"judge at http://127.0.0.1:9/v1 failed after 2 tries"):
        EndpointJudge("judge", endpoint).comparisons(prompts("a"), ["x"], ["y"])


@pytest.mark.parametrize("content", ["<html>", {"choices": []}, {"unknown": 1}])
def test_answers_that_are_no_completions_are_errors(serve: Callable[[Reply], Server], content: Any) -> None:
    server = serve(lambda body, number: (200, {}, content))
    with pytest.raises(JudgeError, match="judge"):
        judge(server, retries=0).comparisons(prompts("a"), ["x"], ["y"])


def test_answers_are_kept_and_a_spent_budget_goes_on_later(serve: Callable[[Reply], Server], tmp_path: Path) -> None:
    server, cache = serve(longer_wins), tmp_path / "judge.jsonl"
    texts = prompts("a", "b", "c"), ["long", "x", "yy"], ["s", "long", "zz"]
    with pytest.raises(BudgetError, match="judge_budget: 4 requests are used up"):
        judge(server, cache=cache, budget=4, workers=1).comparisons(*texts)
    assert len(server.requests) == 4
    with cache.open("a") as file:
        file.write('{"question": "cut')
    assert judge(server, cache=cache).comparisons(*texts) == [1.0, 0.0, 0.5]
    assert len(server.requests) == 6
    assert judge(server, cache=cache, budget=1).comparisons(*texts) == [1.0, 0.0, 0.5]
    assert len(server.requests) == 6
    assert KEY not in cache.read_text()
    judge(server, cache=cache, options={"temperature": 1}).comparisons(*texts)
    assert len(server.requests) == 12


def test_answers_without_a_verdict_tie_and_are_told(serve: Callable[[Reply], Server]) -> None:
    def reply(body: dict[str, Any], number: int) -> tuple[int, dict[str, str], Any]:
        return (200, {}, completion("no idea")) if answers(body)[0] == "odd" else longer_wins(body, number)

    asked = judge(serve(reply))
    assert asked.comparisons(prompts("a", "b"), ["odd", "long"], ["y", "s"]) == [0.75, 1.0]
    assert asked.notes() == ["1 answers of judge had no verdict and count as ties"]
    silent = judge(serve(lambda body, number: (200, {}, completion("hm"))))
    with pytest.raises(JudgeError, match="2 of 2 answers of judge have no verdict"):
        silent.comparisons(prompts("a"), ["x"], ["y"])


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_KEY_HERE", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="set the environment variable NO_KEY_HERE"):
        EndpointJudge("judge", Endpoint(key_variable="NO_KEY_HERE"))
    asked = EndpointJudge("judge", Endpoint("http://me:pw@localhost:1/v1", "NO_KEY_HERE"))
    assert asked.description["endpoint"] == "http://localhost:1/v1"


def test_templates_are_files_with_three_fields(tmp_path: Path) -> None:
    path = tmp_path / "question.txt"
    path.write_text("{prompt} {answer_1} {answer_2} {json}")
    assert read_judge_template(str(path)) == "{prompt} {answer_1} {answer_2} {json}"
    assert read_judge_template(None) == TEMPLATE
    path.write_text("{prompt} {answer_1}")
    with pytest.raises(ValueError, match=r"\{answer_2\} is missing"):
        read_judge_template(str(path))
    with pytest.raises(FileNotFoundError, match="judge_template"):
        read_judge_template(str(tmp_path / "none"))


def test_texts_with_fields_in_them_stay_texts(serve: Callable[[Reply], Server]) -> None:
    server = serve(longer_wins)
    judge(server).comparisons(prompts("what is {answer_1}?"), ["{prompt}"], ["{answer_2} [[1]]"])
    assert {answers(body) for body in server.requests} == {
        ("{prompt}", "{answer_2} [[1]]"),
        ("{answer_2} [[1]]", "{prompt}"),
    }


def test_the_last_verdict_counts() -> None:
    assert read_verdict("[[2]], or rather [[ 1 ]]") == 1.0
    assert read_verdict("") is None
