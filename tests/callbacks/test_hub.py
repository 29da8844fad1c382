"""The exported folder goes to a hub, and nothing is lost when it does not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from lit_align.callbacks import Export, HubError, HubPush
from tests.callbacks.hub_server import GOOD, READER, HubServer
from tests.runner import BASE, QUIET, lit_align, ok

CARD = b"---\nlibrary_name: transformers\n---\n# x\n"
FILES = {"README.md": CARD, "model.safetensors": b"\x00" * 64, "config.json": b"{}"}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    server = HubServer()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server, empty, as the hub of this process, with a token that may write."""
    server.repositories.clear()
    server.broken = False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", GOOD)
    return server


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """What ``HubPush`` asks of a trainer whose model has been exported."""
    export = Export()
    export.folder = tmp_path / "policy"
    export.folder.mkdir()
    for name, content in FILES.items():
        (export.folder / name).write_bytes(content)
    strategy = SimpleNamespace(broadcast=lambda value: value)
    state = {"is_global_zero": True, "global_step": 7, "fast_dev_run": False, "barebones": False}
    return SimpleNamespace(callbacks=[export], strategy=strategy, **state)


def push(trainer: Any, **options: Any) -> None:
    """Call the hooks of a fit in their order."""
    callback = HubPush(**{"push": "me/mine", **options})
    callback.setup(trainer, None, "fit")
    callback.on_fit_start(trainer, None)
    callback.on_fit_end(trainer, None)
    callback.teardown(trainer, None, "fit")


def test_every_file_arrives_in_a_private_repository(hub: HubServer, trainer: Any) -> None:
    push(trainer)
    assert hub.repositories["me/mine"]["visibility"] == "private"
    assert {name: content for name, content in hub.files("me/mine").items() if name != ".gitattributes"} == FILES


def test_a_public_repository_and_a_branch(hub: HubServer, trainer: Any) -> None:
    push(trainer, private=False, revision="run7")
    assert hub.repositories["me/mine"]["visibility"] == "public"
    assert set(FILES) <= set(hub.files("me/mine", "run7"))
    assert set(hub.files("me/mine")) == {".gitattributes"}


def test_a_repository_with_files_is_refused_before_the_first_step(hub: HubServer, trainer: Any) -> None:
    push(trainer)
    callback = HubPush("me/mine")
    callback.setup(trainer, None, "fit")
    with pytest.raises(ValueError, match=r"me/mine exists and holds files; .* hub.existing: update"):
        callback.on_fit_start(trainer, None)
    (trainer.callbacks[0].folder / "config.json").write_bytes(b"[]")
    push(trainer, existing="update")
    assert hub.files("me/mine")["config.json"] == b"[]"


def test_a_missing_token_is_named_before_the_first_step(hub: HubServer, trainer: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=r"hub.push me/mine needs a token .*environment variable HF_TOKEN"):
        HubPush("me/mine").setup(trainer, None, "fit")


@pytest.mark.parametrize(
    ("name", "form", "offline", "expected"),
    [
        ("a/b/c", "merged", "0", "hub.push is 'a/b/c'; expected owner/name"),
        ("me/mine", "none", "0", "export.form is none; expected merged or adapter"),
        ("me/mine", "merged", "1", "hub.push is set, and so is HF_HUB_OFFLINE"),
    ],
)
def test_settings_that_cannot_work(
    name: str, form: Any, offline: str, expected: str, hub: HubServer, trainer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    trainer.callbacks = [Export(form)]
    with pytest.raises(ValueError, match=expected):
        HubPush(name).setup(trainer, None, "fit")


def test_nothing_is_asked_without_a_name(trainer: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    push(trainer, push=None)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("reader", r"the hub refuses the token of the environment \(403\)"),
        ("network", "the hub cannot be reached"),
        ("server", "the hub answered 500"),
    ],
)
def test_a_failed_upload_leaves_the_model_and_says_how(
    fault: str, expected: str, hub: HubServer, trainer: Any, monkeypatch: Any
) -> None:
    if fault == "reader":
        monkeypatch.setenv("HF_TOKEN", READER)
    elif fault == "network":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.broken = fault == "server"
    with pytest.raises(HubError, match=expected) as failed:
        push(trainer)
    folder = trainer.callbacks[0].folder
    message = str(failed.value)
    assert message.endswith(f"the model is in {folder}, and to upload it: hf upload me/mine {folder} --private")
    assert GOOD not in message
    assert READER not in message
    assert {path.name for path in folder.iterdir()} == set(FILES)


@pytest.mark.long
def test_a_run_is_pushed_from_the_command_line(hub: HubServer, rows: Path, tmp_path: Path) -> None:
    words = ("fit", *BASE, *QUIET, "--samples.count", 0, "--model.objective", "dpo", "--data.train", rows)
    words = (*words, "--trainer.max_steps", 1, "--hub.push", "me/mine")
    ok(lit_align(*words, "--run", tmp_path / "run"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "policy").iterdir()}
    assert {name: hub.files("me/mine")[name] for name in written} == written
    hub.repositories.clear()
    hub.broken = True
    ended = lit_align(*words, "--run", tmp_path / "other")
    assert ended.code == 1
    assert "error: hub.push: the hub answered 500" in ended.out
    assert (tmp_path / "other" / "policy" / "model.safetensors").is_file()
    assert list((tmp_path / "other" / "checkpoints").glob("*.ckpt"))
    assert GOOD not in "".join(path.read_text("utf-8", "replace") for path in tmp_path.rglob("*.yaml")) + ended.out
