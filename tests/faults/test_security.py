"""Foreign files must not run code, use the network, write elsewhere or forge output."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import PreTrainedTokenizerFast

import lit_align
from lit_align import testbed
from lit_align.callbacks import AtomicCheckpointIO, Checkpoints
from lit_align.callbacks.checkpointing.checksums import put_in_place, restore_older, write_manifest
from lit_align.callbacks.checkpointing.sharded import PLAIN
from lit_align.cli import parsing
from lit_align.cli import run as cli
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError, printable, shown
from lit_align.models import Loading, load_causal_lm
from lit_align.models.score_model import load_score_model
from lit_align.models.scorer import Scorer
from lit_align.types import PreferencePair
from tests.conftest import tiny_llama
from tests.data.families import tokenizer_of
from tests.runner import BASE, QUIET, SHORT, Ended, distributed, forked, ok
from tests.runner import lit_align as command

PACKAGE = Path(lit_align.__file__).parent
ROOT = PACKAGE.parent


class Payload:
    """An object that calls ``os.mkdir`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The folder that hostile code would create."""
    return tmp_path / "executed"


def fit_words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    objective = () if "online" in more else ("--model.objective", "dpo")
    return ("fit", "--run", run, *BASE, *SHORT, *objective, "--data.train", rows, "--trainer.max_steps", 1, *more)


def fit(run: Path, rows: Path, *more: object, folder: Path | None = None, **environment: str) -> Ended:
    return command(*fit_words(run, rows, *more), folder=folder, **environment)


def refused(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended.out
    assert "Traceback" not in ended.out
    for words in said:
        assert words in ended.out


# ── checkpoints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def of_shards(evil: Any, path: Path) -> None:
    path.mkdir()
    torch.save({"checkpoint": evil, "starts": {}}, path / PLAIN)
    write_manifest(path)


KINDS: dict[str, Callable[[Any, Path], None]] = {"file": AtomicCheckpointIO().save_checkpoint, "folder": of_shards}


@pytest.mark.security(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_payload_in_a_checkpoint_is_not_run(tmp_path: Path, marker: Path, kind: str) -> None:
    path = tmp_path / "evil.ckpt"
    KINDS[kind]({"state_dict": {}, "optimizer_states": [Payload(marker)]}, path)
    with pytest.raises(ValueError, match="holds more than tensors and plain data") as error:
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "weights_only" not in str(error.value)
    assert not marker.exists()


def test_the_payload_works_where_nothing_stops_it(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))  # noqa: S301
    assert marker.exists()


@pytest.mark.security(1)
def test_a_run_does_not_go_on_from_a_payload(rows: Path, tmp_path: Path, marker: Path) -> None:
    """A file in one process, and a folder in two sharded ones; the advice of torch is not repeated."""
    for kind, save in KINDS.items():
        save({"state_dict": Payload(marker)}, tmp_path / f"{kind}.ckpt")
    refused(fit(tmp_path / "run", rows, "--ckpt_path", tmp_path / "file.ckpt"), "more than tensors and plain data")
    more = ("--trainer.strategy", "fsdp", "--ckpt_path", tmp_path / "folder.ckpt")
    for ended in distributed(2, *fit_words(tmp_path / "run", rows, *more)):
        assert ended.code != 0
        assert "weights_only=False" not in ended.out
    assert "more than tensors and plain data" in ended.out
    assert not marker.exists()


@pytest.mark.security(1)
@pytest.mark.parametrize("load", [load_causal_lm, load_score_model])
def test_pickled_weights_of_a_model_are_not_read(tmp_path: Path, marker: Path, load: Callable[..., Any]) -> None:
    tiny_llama().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError), match="safetensors"):
        load(str(tmp_path), Loading())
    assert not marker.exists()


@pytest.mark.security(2)
def test_no_torch_that_weights_only_does_not_protect() -> None:
    """CVE-2025-32434 ended with 2.6, CVE-2026-24747 with 2.10."""
    assert not needed("torch").specifier.contains("2.9.1")
    assert Version(torch.__version__) >= Version("2.10")


@pytest.mark.security(3)
@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "file", "hf"])
def test_a_checkpoint_is_not_read_from_elsewhere(rows: Path, tmp_path: Path, scheme: str) -> None:
    with pytest.raises(ValueError, match="checkpoints are not read from URLs"):
        AtomicCheckpointIO().load_checkpoint(f"{scheme}://127.0.0.1/evil.ckpt")
    if scheme == "http":
        ended = offline(lambda: fit_words(tmp_path / "run", rows, "--ckpt_path", "http://127.0.0.1/evil.ckpt"))
        refused(ended, "checkpoints are not read from URLs")


@pytest.fixture
def hostile(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable module that leaves a trace when it is imported."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    source = f"open({str(marker)!r}, 'w')\n\nclass Part:\n    pass\n\ndef work(*given):\n    return [0.0]\n"
    (folder / "hostile_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.security(4)
def test_settings_and_classes_in_a_checkpoint_are_nothing(
    rows: Path, tmp_path: Path, hostile: Path, marker: Path
) -> None:
    run = tmp_path / "run"
    ok(fit(run, rows))
    last = run / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    state["hyper_parameters"] = {"_class_path": "hostile_module.Part", "_instantiator": "hostile_module.work"}
    state["hparams_name"] = "kwargs"
    state["datamodule_hyper_parameters"] = {"_instantiator": "hostile_module.work", "train": "elsewhere"}
    AtomicCheckpointIO().save_checkpoint(state, tmp_path / "named.ckpt")
    ok(fit(run, rows, "--trainer.max_steps", 2, "--ckpt_path", tmp_path / "named.ckpt"))
    assert not marker.exists()


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────────────

LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
ONLINE = ("--task", "online", "--model.objective", "kl_rlhf", "--model.score", "FunctionScore")
NAMES: dict[str, tuple[object, ...]] = {
    "an objective": ("--model.objective", "hostile_module.Part"),
    "a contrast": ("--config", "{model: {objective: {class_path: PreferenceObjective, init_args: {contrast: H}}}}"),
    "an optimizer": ("--model.optimizer", "hostile_module.Part"),
    "a callback": ("--trainer.callbacks+=hostile_module.Part",),
    "a logger": ("--trainer.logger", "hostile_module.Part"),
    "a strategy": ("--trainer.strategy", "hostile_module.Part"),
    "a score": (*ONLINE, "--model.score.function", "hostile_module.work"),
    "a callback's function": ("--config", "{trainer: {callbacks: [{class_path: LAMBDA, init_args: {setup: H}}]}}"),
}


@pytest.mark.security(5)
@pytest.mark.parametrize("where", NAMES)
def test_what_a_configuration_names_is_not_imported(
    rows: Path, tmp_path: Path, hostile: Path, marker: Path, where: str
) -> None:
    words = [str(word).replace(": H}", ": hostile_module.Part}").replace("LAMBDA", LAMBDA) for word in NAMES[where]]
    refused(fit(tmp_path / "run", rows, *words, folder=hostile))
    assert not marker.exists()


@pytest.mark.security(5)
def test_the_module_would_leave_its_trace(rows: Path, tmp_path: Path, hostile: Path, marker: Path) -> None:
    ended = fit(tmp_path / "run", rows, *NAMES["an objective"], "--extend", "hostile_module")
    refused(ended, "hostile_module.Part")
    assert marker.exists()


FUNCTIONS = (
    *("os.system", "posix.system", "subprocess.run", "builtins.exec", "shutil.rmtree", "torch.load"),
    *("lit_align.files.os.system", "lit_align.cli.run_setup.shutil.rmtree", "torch.optim.optimizer.torch.load"),
    *("lightning.pytorch.trainer.trainer.os.remove", "importlib.import_module"),
)
"""Also under the names by which allowed modules know them."""


@pytest.mark.security(5)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_the_system_is_no_score(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parsing.prepare_parsing([])
    parser = parsing.Parser(prog="lit_align fit")
    parser.add_argument("--score", type=Scorer)
    with pytest.raises(SystemExit):
        parser.parse_args(["--score", "FunctionScore", "--score.function", name])
    assert "is not allowed" in capsys.readouterr().err


@pytest.mark.security(5)
def test_the_installed_command_imports_nothing_from_where_it_is_called(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "lit_align.py").write_text(f"open({str(marker)!r}, 'w')\n")
    script = Path(sys.executable).parent / "lit-align"
    subprocess.run([script, "--version"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert not marker.exists()
    subprocess.run([sys.executable, "-m", "lit_align", "--version"], cwd=tmp_path, check=True)
    assert marker.exists(), "which Python itself does for -m"


@pytest.mark.security(6)
@pytest.mark.parametrize("tag", ["python/object/apply:os.mkdir", "python/name:os.mkdir", "python/object/new:os.mkdir"])
def test_a_tag_in_a_configuration_builds_nothing(rows: Path, tmp_path: Path, marker: Path, tag: str) -> None:
    (tmp_path / "tag.yaml").write_text(f"run: !!{tag} [{marker}]\n")
    refused(fit(tmp_path / "run", rows, "--config", tmp_path / "tag.yaml"), "constructor")
    (tmp_path / "part.yaml").write_text(f"!!{tag} [{marker}]\n")
    refused(fit(tmp_path / "run", rows, "--model.objective", tmp_path / "part.yaml"))
    assert not marker.exists()


def billion(levels: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)])


@pytest.mark.security(7)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (billion(), "values in the YAML"),
        ("[" * 300_000, "levels in the YAML"),
        ("x: &x [*x]", "stands inside of what it stands for"),
        ("data: {batch_size: 1}\ndata: {batch_size: 2}", "duplicate key 'data'"),
        ("x: " + "y" * 1_000_001, "characters of YAML"),
    ],
)
def test_a_bomb_ends_at_once(rows: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bomb.yaml").write_text(text)
    began = time.monotonic()
    refused(fit(tmp_path / "run", rows, "--config", tmp_path / "bomb.yaml"), said)
    assert time.monotonic() - began < 8, "building the parser takes one second on an idle machine"


@pytest.mark.security(8)
@pytest.mark.parametrize("words", ["env: {LD_PRELOAD: evil.so}", "trainer: {env: {PATH: /evil}}"])
def test_a_configuration_sets_no_environment(rows: Path, tmp_path: Path, words: str) -> None:
    (tmp_path / "env.yaml").write_text(words)
    refused(fit(tmp_path / "run", rows, "--config", tmp_path / "env.yaml"), "env")


# ── models, hubs, templates, data ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_code(tmp_path: Path, marker: Path) -> Path:
    """A model folder in which all code leaves a trace when it runs."""
    folder = tmp_path / "model"
    shutil.copytree(testbed.path("policy"), folder)
    for name in ("modeling_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    rewrite(folder / "config.json", auto_map=dict.fromkeys(CLASSES, "modeling_evil.Evil"))
    rewrite(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]})
    return folder


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


def rewrite(file: Path, **more: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | more), "utf-8")


@pytest.mark.security(9)
@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_is_not_run(
    rows: Path, tmp_path: Path, with_code: Path, marker: Path, known: bool
) -> None:
    """Where transformers knows the architecture it is used; where it does not, the model is refused."""
    if not known:
        rewrite(with_code / "config.json", model_type="evil", architectures=["Evil"])
    ended = fit(tmp_path / "run", rows, "--model.policy", with_code, "--samples.count", 1)
    assert ended.code == (0 if known else 2), ended.out
    assert not marker.exists()


@pytest.mark.security(9)
def test_there_is_no_setting_that_trusts_it(rows: Path, tmp_path: Path) -> None:
    for key in ("model.loading.trust_remote_code", "data.trust_remote_code"):
        refused(fit(tmp_path / "run", rows, f"--{key}", "true"), "trust_remote_code")


def offline(words: Callable[[], tuple[object, ...]]) -> Ended:
    """Run a command in a process that exits with code 99 when a socket is used."""

    def work() -> None:
        def use(*given: Any, **more: Any) -> Any:
            print("used a socket:", given, flush=True)
            os._exit(99)

        for name in ("connect", "connect_ex", "bind", "sendto"):
            setattr(socket.socket, name, use)
        for name in ("getaddrinfo", "gethostbyname", "create_connection"):
            setattr(socket, name, use)
        os.environ.pop("HF_HUB_OFFLINE", None)
        for module in [module for name, module in sys.modules.items() if name.startswith("huggingface_hub")]:
            if hasattr(module, "HF_HUB_OFFLINE"):
                module.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
        cli.main([str(word) for word in words()])

    return forked([work])[0]


@pytest.mark.security(10)
@pytest.mark.parametrize("key", ["model.policy", "data.tokenizer", "data.train"])
@pytest.mark.parametrize("name", ["./out/model", "out/model", "out/a/model"])
def test_a_mistyped_path_is_not_looked_up(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    refused(offline(lambda: fit_words(tmp_path / "run", rows, f"--{key}", name)), name)


@pytest.mark.security(10)
def test_a_name_of_a_hub_is_looked_up(rows: Path, tmp_path: Path) -> None:
    """The wrong variant of the test above: a name of a hub does use a socket."""
    ended = offline(lambda: fit_words(tmp_path / "run", rows, "--model.policy", "nobody/nothing"))
    assert ended.code == 99, ended.out
    assert "used a socket" in ended.out


def render(template: str) -> None:
    tokenizer: PreTrainedTokenizerFast = tokenizer_of("chatml")
    tokenizer.chat_template = template + "{% for message in messages %}{{ message.content }}{% endfor %}"
    user, good, bad = ({"role": role, "content": role} for role in ("user", "assistant", "assistant"))
    pair = PreferencePair((user,), (good,), ({**bad, "content": "other"},), "rows.jsonl:7")
    (outcome,) = Tokenize(Encoder(tokenizer), Cut(8000))([pair]).outcomes
    assert isinstance(outcome, DataError), outcome
    raise outcome


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__['os'].mkdir('executed') }}",
    "{{ self.__init__.__globals__ }}",
    "{% set x = cycler.__init__.__globals__ %}{{ x.os.mkdir('executed') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
)


@pytest.mark.security(11)
@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_leave_its_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="rows.jsonl:7: the chat template refuses this conversation"):
        render(template)
    assert not (tmp_path / "executed").exists()


@pytest.mark.security(11)
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'x' * 3000000 }}", "writes 3000004 characters; expected at most"),
        ("{% for i in range(90000) %}{{ messages }}{% endfor %}", "characters; expected at most"),
        ("{{ 'x' * (10 ** 30) }}", "refuses this conversation"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "refuses this conversation"),
        ("{% for i in range(10000000) %}x{% endfor %}", "refuses this conversation: 'Range too big"),
    ],
)
def test_a_template_cannot_write_without_end(template: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        render(template)


# ── paths, caches, messages ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def valued(tmp_path: Path) -> Path:
    """A folder outside of any run that must not change."""
    folder = tmp_path / "valued"
    folder.mkdir()
    (folder / "work").write_text("of years")
    return folder


@pytest.mark.security(13)
def test_what_a_killed_run_left_is_removed_without_following_links(rows: Path, tmp_path: Path, valued: Path) -> None:
    """Orphans of a save, and names that a replaced checkpoint had, are links to elsewhere."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in (".step=1.ckpt.1.tmp", ".last.ckpt.older"):
        (folder / name).symlink_to(valued)
    (folder / "last.ckpt").symlink_to(valued)
    ok(fit(tmp_path / "run", rows))
    assert (valued / "work").read_text() == "of years"
    assert [path.name for path in valued.iterdir()] == ["work"]


@pytest.mark.security(13)
def test_a_link_in_the_place_of_a_checkpoint_is_replaced_not_followed(tmp_path: Path, valued: Path) -> None:
    target, partial = tmp_path / "step=1.ckpt", tmp_path / ".partial"
    target.symlink_to(valued)
    partial.mkdir()
    put_in_place(partial, target)
    assert target.is_dir()
    assert not target.is_symlink()
    (tmp_path / ".step=1.ckpt.older").symlink_to(valued)
    restore_older(tmp_path)
    assert (valued / "work").read_text() == "of years"


@pytest.mark.security(13)
@pytest.mark.parametrize(
    "name", ["../valued", "../../valued", "../valued.ckpt", "file:///valued.ckpt", "a/../../x.ckpt"]
)
def test_a_checkpoint_cannot_say_what_is_removed(tmp_path: Path, name: str) -> None:
    """The names of older checkpoints are part of a checkpoint."""
    callback, trainer = Checkpoints(keep=1), Trainer(logger=False, accelerator="cpu")
    callback.dirpath = str(tmp_path / "checkpoints")
    said: Any = callback._should_remove_checkpoint
    assert not said(trainer, str(tmp_path / "checkpoints" / name), f"{callback.dirpath}/step=2.ckpt")
    assert not said(trainer, name, f"{callback.dirpath}/step=2.ckpt")
    assert said(trainer, f"{callback.dirpath}/step=1.ckpt", f"{callback.dirpath}/step=2.ckpt")


@pytest.mark.security(13)
def test_a_run_writes_into_its_folder_alone(rows: Path, tmp_path: Path) -> None:
    """This holds also for a folder that is named by a relative path with ``..``."""
    (tmp_path / "here").mkdir()
    ok(fit(Path("../there/run"), rows, folder=tmp_path / "here"))
    assert not list((tmp_path / "here").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"here", "there"}


@pytest.mark.security(14)
def test_what_is_kept_can_be_read_by_its_owner_alone_and_is_no_pickle(rows: Path, tmp_path: Path) -> None:
    """Prepared rows and reference log-probs are private, whatever the umask."""
    more = ("--data.cache", tmp_path / "kept", "--model.reference", "Precomputed")
    os.umask(0)
    try:
        ok(fit(tmp_path / "run", rows, *more, "--model.reference.cache", tmp_path / "kept"))
    finally:
        os.umask(0o022)
    folders = [tmp_path / "kept", *(path for path in (tmp_path / "kept").iterdir() if path.is_dir())]
    assert len(folders) == 3
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".arrow", ".json", ".lock"}
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x02", b"PK")]


@pytest.mark.security(14)
@pytest.mark.parametrize("setting", ["data.cache", "model.reference.cache"])
def test_a_folder_that_others_may_write_to_is_refused(rows: Path, tmp_path: Path, setting: str) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    more = ("--model.reference", "Precomputed", f"--{setting}", tmp_path / "shared")
    refused(fit(tmp_path / "run", rows, *more), setting, "others may write to it")


TOKEN = "hf_" + "abcdefghijklmnop" * 2


@pytest.mark.security(15)
def test_a_bad_row_cannot_steer_the_terminal_or_give_away_a_secret(rows: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    row = {"prompt": {"api_key": "sesame", "password": "open"}, "chosen": f"\x1b[2J{TOKEN}", "rejected": "y" * 5000}
    bad.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "x", "chosen": [f"\x1b]0;title\x07{TOKEN}"]}) + "\n")
    ended = fit(tmp_path / "run", bad)
    refused(ended, "bad.jsonl:1")
    assert not {"\x1b", "\x07"} & set(ended.out)
    for secret in (TOKEN, "sesame", "open'", "y" * 300):
        assert secret not in ended.out


@pytest.mark.security(15)
def test_nor_can_a_name_or_a_setting(rows: Path, tmp_path: Path) -> None:
    for key in ("data.train", "model.policy", "data.batch_size", "trainer.strategy", "model.objective"):
        ended = fit(tmp_path / "run", rows, f"--{key}", f"./x\x1b[2J{TOKEN}")
        refused(ended)
        assert "\x1b" not in ended.out, key
        assert TOKEN not in ended.out, key


@pytest.mark.security(15)
def test_what_is_shown_of_a_value() -> None:
    assert shown({"hub_token": "abc", "prompt": "x"}) == "{'hub_token': '…', 'prompt': 'x'}"
    assert shown({"PASSWORD": "a\"b'c", "n": 1}) == """{'PASSWORD': '…', 'n': 1}"""
    assert shown({"eos_token": "</s>", "tokens": [1, 2]}) == "{'eos_token': '</s>', 'tokens': [1, 2]}"
    assert printable(f"a\x9b31mb\u202ec\r\n{TOKEN} secret='s'") == r"a\x9b31mb\u202ec\r" + "\nhf_… secret='…'"
    assert len(shown("a" * 1_000_000)) < 240


@pytest.mark.security(15)
def test_the_environment_stands_in_nothing_that_a_run_writes(rows: Path, tmp_path: Path) -> None:
    ok(fit(tmp_path / "run", rows, "--export.form", "merged", SOME_SECRET="only-in-the-environment"))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.yaml", "data.json", "last.ckpt", "README.md"}
    assert not [path for path in files if b"only-in-the-environment" in path.read_bytes()]


# ── network, processes, packages ────────────────────────────────────────────────────────────────────────────────────

SERVICES = ("socket", "http", "urllib", "requests", "httpx", "aiohttp", "grpc", "xmlrpc", "ftplib", "smtplib", "ssl")


def imported() -> Iterator[tuple[Path, str]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path, node.module or ""


@pytest.mark.security(16, 19)
def test_nothing_here_speaks_a_protocol() -> None:
    """No reward or generation service is started that would need protection."""
    used = {(path.name, name) for path, name in imported() if name.split(".")[0] in SERVICES}
    found = {(path, name) for path, name in used if name != "urllib.parse"}  # which reads addresses
    assert not found
    assert any(name == "torch" for _, name in imported())


@pytest.mark.security(16)
def test_every_score_is_computed_in_the_process() -> None:
    """That of a judge is too, unless the judge's name is that of a model behind an endpoint."""
    assert {kind.__name__ for kind in Scorer.__subclasses__() if kind.__module__.startswith("lit_align")} == {
        *("RewardModel", "KnownScore", "FunctionScore", "JudgeScore"),
    }


@pytest.mark.security(17)
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, LOOPBACK := "lo0" if sys.platform == "darwin" else "lo"),
        ({"MASTER_ADDR": "127.0.0.1"}, LOOPBACK),
        ({"MASTER_ADDR": "10.0.0.1"}, None),
        ({"GLOO_SOCKET_IFNAME": "eth7"}, "eth7"),
        ({"SLURM_NTASKS": "16"}, None),
    ],
)
def test_processes_of_one_machine_listen_on_it_alone(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], found: str | None
) -> None:
    for name in ("MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cli._bind_gloo_to_loopback()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == found


@pytest.mark.security(17)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks the kernel of Linux")
def test_gloo_is_bound_to_loopback() -> None:
    """Every listening socket of a process group, but for the one of the rendezvous, which PyTorch opens itself."""

    def work() -> None:
        cli._bind_gloo_to_loopback()
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        torch.distributed.all_reduce(torch.ones(1))
        own = {os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _open(number)}
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                    print(kind, words[1].split(":")[0])

    (ended,) = forked([work])
    assert ok(ended).out.split() == ["tcp", "0100007F"], ended.out


def _open(number: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


def needed(name: str) -> Requirement:
    return next(one for one in dependencies() if one.name.lower() == name)


def dependencies() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [Requirement(line) for line in project["dependencies"]]


@pytest.mark.security(18)
def test_versions_that_harm_are_not_installed() -> None:
    """Malicious lightning, jinja2 whose sandbox leaks, jsonargparse without the list of what may be imported."""
    for version in ("2.6.2", "2.6.3", "2.6.5", "2.7.0"):
        assert not needed("lightning").specifier.contains(version)
    assert not needed("jinja2").specifier.contains("3.1.5")
    assert not needed("jsonargparse").specifier.contains("4.52.0")
    assert not needed("jsonargparse").specifier.contains("5.0")


@pytest.mark.security(18)
def test_every_package_that_is_needed_is_pinned_where_the_tests_run() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line]
    pinned = {Requirement(line).name.lower().replace("_", "-"): line for line in lines}
    for requirement in dependencies():
        if requirement.name != "torch":  # a build for a CPU or for CUDA, as the machine has it
            version = Version(pinned[requirement.name.lower()].split("==")[1])
            assert requirement.specifier.contains(version), str(requirement)


@pytest.mark.security(19)
def test_a_whole_run_uses_no_socket(rows: Path, tmp_path: Path) -> None:
    """Training, validation, samples with a score, figures, export."""
    more = ("--data.validation", rows, "--samples.count", 2, "--samples.score", "TestbedScore")
    words = ("fit", "--run", tmp_path / "run", *BASE, *QUIET, "--model.objective", "sr_dpo", "--data.train", rows)
    ended = offline(lambda: (*words, *more, "--trainer.max_steps", 2, "--samples.sampling.max_new_tokens", 4))
    ok(ended)
    assert (tmp_path / "run" / "policy" / "model.safetensors").exists()
