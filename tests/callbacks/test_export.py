"""The exported folder contains the trained policy in the requested form."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed
from lit_align.callbacks import Export
from lit_align.callbacks.export import _on_cpu
from lit_align.cli.consolidate import main as consolidate
from lit_align.models import Loading, LoRA, load_causal_lm
from lit_align.modules import LitPreference
from lit_align.objectives import dpo
from tests.conftest import tiny_llama
from tests.runner import BASE, QUIET, Ended, distance, distributed, first_loss, forked, lit_align, ok, weights
from tests.standin import OnDevice, on_device, standin

KINDS: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
IDS = torch.arange(2, 42).view(2, 20)


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", run, *BASE, *QUIET, "--samples.count", 0, "--model.objective", "sr_dpo"),
        *("--data.train", rows, "--data.validation", rows, "--trainer.max_steps", 2, *more),
    )


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    ok(lit_align(*words(folder, rows)))
    return folder


LORA = ("--model.lora.rank", 4, "--model.optimizer.lr", "0.01")


@pytest.fixture(scope="module")
def merged(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "run"
    ok(lit_align(*words(folder, rows, *LORA)))
    return folder


@pytest.fixture(scope="module")
def adapter(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "run"
    ok(lit_align(*words(folder, rows, *LORA, "--export.form", "adapter")))
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    values: Tensor = model.eval()(input_ids=IDS).logits
    return values


def base() -> torch.nn.Module:
    return load_causal_lm("testbed:policy", Loading())


def trained(run: Path, model: torch.nn.Module) -> torch.nn.Module:
    """The model with the weights of the run's last checkpoint."""
    state = {name.removeprefix("policy."): value for name, value in weights(run).items()}
    assert model.load_state_dict(state, strict=False).unexpected_keys == []
    return model


@pytest.mark.representative
def test_the_folder_is_the_trained_policy(run: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(run / "policy")
    assert torch.equal(logits(exported), logits(trained(run, base())))
    assert not torch.equal(logits(exported), logits(base()))


def test_the_tokenizer_lies_beside_the_weights(run: Path) -> None:
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (run / "policy", testbed.path("policy")))
    text = "She plays piano. TL;DR:"
    assert one(text).input_ids == other(text).input_ids
    assert one.chat_template == other.chat_template
    assert (one.pad_token, one.eos_token) == (other.pad_token, other.eos_token)


@pytest.mark.long
def test_an_exported_policy_is_aligned_again(run: Path, rows: Path, tmp_path: Path) -> None:
    """The exported policy is its own reference, so the first loss is ln 2."""
    ok(lit_align(*words(tmp_path, rows, "--model.policy", run / "policy")))
    assert first_loss(tmp_path) == pytest.approx(math.log(2))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert not torch.equal(logits(again), logits(AutoModelForCausalLM.from_pretrained(run / "policy")))


def test_merged_is_the_policy_with_its_adapter(merged: Path) -> None:
    exported = AutoModelForCausalLM.from_pretrained(merged / "policy")
    assert not (merged / "policy" / "adapter_config.json").exists()
    with_adapter = logits(trained(merged, LoRA(rank=4).wrap(load_causal_lm("testbed:policy", Loading()))))
    torch.testing.assert_close(logits(exported), with_adapter, rtol=1e-4, atol=1e-4)
    assert (with_adapter - logits(base())).abs().max() > 0.01


def test_adapter_alone_fits_on_the_base(adapter: Path, merged: Path) -> None:
    """The same seed trains the same adapter, so the two forms agree."""
    names = {path.name for path in (adapter / "policy").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not any(name.startswith("model") for name in names)
    exported = PeftModel.from_pretrained(base(), str(adapter / "policy"))
    assert torch.equal(
        logits(exported), logits(trained(adapter, LoRA(rank=4).wrap(load_causal_lm("testbed:policy", Loading()))))
    )
    as_merged = logits(AutoModelForCausalLM.from_pretrained(merged / "policy"))
    torch.testing.assert_close(logits(exported), as_merged, rtol=1e-4, atol=1e-4)


def test_an_exported_adapter_is_trained_further(adapter: Path, rows: Path, tmp_path: Path) -> None:
    """The reference is the adapter as loaded, so the first loss is ln 2; the run can be resumed."""
    again = words(tmp_path, rows, "--model.policy", adapter / "policy", "--model.optimizer.lr", "0.01")
    ok(lit_align(*again))
    assert first_loss(tmp_path) == pytest.approx(math.log(2))
    ok(lit_align(*again, "--trainer.max_steps", 3, "--ckpt_path", "last"))
    state = {name.removeprefix("policy."): value for name, value in weights(tmp_path).items()}
    assert all("lora_" in name for name in state)
    model = load_causal_lm(str(adapter / "policy"), Loading())
    before = logits(model)
    assert model.load_state_dict(state, strict=False).unexpected_keys == []
    exported = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "policy"))
    torch.testing.assert_close(exported, logits(model), rtol=1e-4, atol=1e-4)
    assert (exported - before).abs().max() > 0.01


def test_adapter_without_lora_is_refused_before_the_model_is_read(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    unread = ("--model.policy", tmp_path / "empty", "--data.tokenizer", "testbed:policy")
    ended = lit_align(*words(tmp_path / "run", rows, *unread, "--export.form", "adapter"))
    assert ended.code == 2
    errors = [line for line in ended.out.splitlines() if "error:" in line]
    assert errors == [
        "error: export.form is 'adapter', but the run has no adapter; set model.lora or take 'merged'",
    ]
    assert "Traceback" not in ended.out


def test_an_adapter_that_is_merged_into_bfloat16_is_rounded_and_so_it_says(tmp_path: Path) -> None:
    host = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    narrow, wide = (LitPreference("x", dpo(), loading=Loading(dtype=kind), lora=LoRA(rank=2)) for kind in KINDS)
    with pytest.warns(UserWarning, match="export.form is 'merged', and the weights are bfloat16"):
        Export().setup(host, narrow, "fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Export("adapter").setup(host, narrow, "fit")
        Export().setup(host, wide, "fit")


@pytest.mark.long
def test_none_writes_nothing(rows: Path, tmp_path: Path) -> None:
    ended = ok(lit_align(*words(tmp_path, rows, "--export.form", "none")))
    assert not (tmp_path / "policy").exists()
    assert str(tmp_path / "policy") not in ended.out


@pytest.mark.long
def test_the_last_words_say_where_the_policy_is(rows: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "policy") in ok(lit_align(*words(tmp_path, rows))).out


@pytest.mark.long
@pytest.mark.parametrize("lora", [(), LORA], ids=["all weights", "adapter merged"])
def test_two_processes_export_what_one_does(rows: Path, tmp_path: Path, lora: tuple[object, ...]) -> None:
    sgd = (*lora, "--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.05")
    ok(lit_align(*words(tmp_path / "one", rows, *sgd, "--data.batch_size", 8)))
    for ended in distributed(2, *words(tmp_path / "two", rows, *sgd, "--data.batch_size", 4)):
        ok(ended)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / n / "policy").state_dict() for n in ("one", "two"))
    assert distance(one, two) < 1e-6
    assert distance(one, base().state_dict()) > 1e-5


@pytest.mark.long
def test_an_older_policy_is_replaced(run: Path, rows: Path, tmp_path: Path) -> None:
    """A resumed run stays in its folder and replaces complete and partial exports there."""
    for name in ("policy", ".policy.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale.txt").touch()
    last = run / "checkpoints" / "last.ckpt"
    ok(lit_align(*words(tmp_path, rows, "--trainer.max_steps", 3, "--ckpt_path", last)))
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        path.name for path in (run / "policy").iterdir()
    }
    assert not (tmp_path / ".policy.partial").exists()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    assert torch.equal(logits(exported), logits(trained(tmp_path, base())))


def test_the_card_says_what_was_done(run: Path, rows: Path) -> None:
    _, front, text = (run / "policy" / "README.md").read_text("utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["lit_align", "preference-alignment"]}
    for said in (
        "Logistic(beta=",
        "SelfRefine(strength=",
        "`testbed:policy`",
        f"`{rows}`",
        "steps: 2",
        '"val/loss": ',
    ):
        assert said in text
    assert "2405.21040" in text.split("```bibtex\n")[1]
    assert "None" not in text


def test_an_export_that_is_another_model_is_not_put_in_place(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export is read back first; if that fails, the run fails and the partial folder is kept."""
    monkeypatch.setattr("lit_align.models.export.merge", lambda model: model.unload())  # forgets the adapter
    for command in (
        words(tmp_path / "run", rows, *LORA),
        ("consolidate", tmp_path / "run", "--to", tmp_path / "folder"),
    ):
        ended = lit_align(*command) if command[0] == "fit" else consolidated(command)
        assert ended.code == 1
        assert "error: the exported model is not the trained one: read back from" in ended.out
        assert "Traceback" not in ended.out
    assert not (tmp_path / "run" / "policy").exists()
    assert (tmp_path / "run" / ".policy.partial" / "config.json").is_file()
    assert not (tmp_path / "folder").exists()


def consolidated(command: tuple[object, ...]) -> Ended:
    return forked([lambda: consolidate([str(word) for word in command[1:]])])[0]


def test_a_merged_export_copies_the_model_to_cpu_memory_and_nothing_on_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with standin(monkeypatch):
        model = on_device(LoRA(rank=2).wrap(tiny_llama(vocabulary=61)))
        made: list[torch.Size] = []
        monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda weight, memo: made.append(weight.shape))
        copied = _on_cpu(model)
        assert not made
        tensors = [*copied.parameters(), *copied.buffers()]
        assert tensors
        assert not any(isinstance(tensor.data, OnDevice) for tensor in tensors)
        merged: torch.nn.Module = copied.merge_and_unload()  # type: ignore[operator, assignment]
        assert isinstance(next(model.parameters()).data, OnDevice)
    assert logits(merged).isfinite().all()
