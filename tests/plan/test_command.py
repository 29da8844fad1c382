"""Plans of configurations, with and without their models and data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from lit_align.plan.command import main
from lit_align.testbed import path
from tests.plan.models import ARCHITECTURES, model
from tests.runner import Ended, forked

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MISTRAL = {
    **LLAMA,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 50304,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
PUBLISHED = {
    "sft_pythia2.8b_hh": (PYTHIA, 2_775_208_960),
    "sr_dpo_pythia2.8b_hh": (PYTHIA, 2_775_208_960),
    "sr_dpo_zephyr7b_ultrafeedback": (MISTRAL, 7_241_732_096),
    "averaged_dpo_llama2-7b_tldr": (LLAMA, 6_738_415_616),
}
"""Experiment → configuration of its model, and the number of parameters that its authors publish."""


CLASSES = {"opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}


def few_of(names: Iterable[str], always: str) -> list[ParameterSet]:
    """All of them, and one in every run of the gate: sizes take seconds each."""
    return [pytest.param(name, marks=() if name == always else pytest.mark.long) for name in names]


def plan(*words: object) -> Ended:
    def work() -> None:
        main([str(word) for word in words])

    return forked([work])[0]


@pytest.mark.parametrize("name", few_of(PUBLISHED, "sr_dpo_pythia2.8b_hh"))
def test_published_experiments_fit_the_gpus_of_their_papers(name: str, tmp_path: Path) -> None:
    """Eight GPUs of 80 GiB, without a look at models or data."""
    architecture, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    words = ("--config", CONFIGS / "experiment" / f"{name}.yaml", "--architecture", tmp_path / "config.json")
    ended = plan(*words, "--lengths", "384,128", "--hardware", "a100-80gb")
    assert ended.code == 0, ended.out
    assert f"{parameters:,} parameters, {parameters:,} trained; 8 processes, fsdp; bf16-mixed" in ended.out
    assert "fits into 80 GiB" in ended.out
    assert "s per optimizer step at 40%" in ended.out


@pytest.mark.parametrize("step", ["sft", "reward"])
@pytest.mark.parametrize("name", few_of(ARCHITECTURES, "opt1.3b_hh"))
def test_the_steps_before_rlhf_fit_on_the_device_that_their_files_name(name: str, step: str, tmp_path: Path) -> None:
    file = CONFIGS / "experiment" / "preference_matching" / name / f"{step}.yaml"
    room = re.search(r"[Oo]ne GPU of (\d+) GB", file.read_text("utf-8"))
    assert room is not None
    config = ARCHITECTURES[name].to_dict() | {"architectures": [CLASSES[ARCHITECTURES[name].model_type]]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    words = ("--config", file, "--architecture", tmp_path / "config.json", "--lengths", "384,128")
    ended = plan(*words, "--memory", int(float(room[1]) * 1e9 / 2**30), "--flops", "3e14")
    assert ended.code == 0, ended.out
    assert re.search(r"^fits into", ended.out, re.MULTILINE), ended.out


@pytest.mark.parametrize(("dtype", "rate"), [("float32", "1.95e+13"), ("bfloat16", "3.12e+14")])
def test_the_peak_depends_on_the_dtype_of_the_weights(dtype: str, rate: str) -> None:
    words = ("--config", CONFIGS / "quickstart.yaml", "--model.loading.dtype", dtype, "--hardware", "a100-80gb")
    assert f"of {rate} operations per second" in plan(*words).out


def test_the_quickstart_is_planned_from_its_data() -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", "--flops", "1e12")
    assert ended.code == 0, ended.out
    assert "557,696 parameters, 557,696 trained; one process; 32-true" in ended.out
    assert "(the largest of the data)" in ended.out
    assert "100 steps:" in ended.out
    assert "Warning" not in ended.out


def test_suggestions_make_a_run_fit(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    words = ("--config", CONFIGS / "quickstart.yaml", "--model.policy", folder, "--trainer.accelerator", "auto")
    ended = plan(*words, "--trainer.devices", 4, "--lengths", "100,100", "--memory", "1")
    assert ended.code == 0, ended.out
    assert "does not fit into 1 GiB" in ended.out
    rows = [line for line in ended.out.splitlines() if line.startswith("│")]
    settings = [row for row in rows if row.rstrip("│ ").endswith(("yes", "no"))]
    assert any("gradient_checkpointing" in row for row in settings)
    assert any("trainer.strategy: fsdp" in row for row in settings)
    assert "all of these" in settings[-1]
    assert settings[-1].rstrip("│ ").endswith("yes")


TESTBED = path("policy") / "config.json"


@pytest.mark.parametrize("name", few_of(ARCHITECTURES, "opt1.3b_hh"))
def test_rlhf_fits_on_the_device_that_its_file_names(name: str, tmp_path: Path) -> None:
    """Every model of it is taken from the given architecture, and counted."""
    file = CONFIGS / "experiment" / "preference_matching" / name / "rlhf.yaml"
    room = re.search(r"[Oo]ne GPU of (\d+) GB", file.read_text("utf-8"))
    assert room is not None
    config = ARCHITECTURES[name].to_dict() | {"architectures": [CLASSES[ARCHITECTURES[name].model_type]]}
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    ended = plan(
        *("--config", file, "--architecture", tmp_path / "config.json"), "--memory", int(float(room[1]) * 1e9 / 2**30)
    )
    assert ended.code == 0, ended.out
    assert re.search(r"^fits into", ended.out, re.MULTILINE), ended.out
    for word in ("writing", "scoring", "forward", "backward", "step", "keys and values", "frozen models"):
        assert word in ended.out


def test_suggestions_for_on_policy_runs() -> None:
    words = ("--config", CONFIGS / "experiment" / "pm_testbed" / "rlhf.yaml", "--architecture", TESTBED)
    ended = plan(*words, "--memory", "0.05", "--flops", "1e12", "--trainer.accelerator", "cpu")
    assert ended.code == 0, ended.out
    assert "rollout: 128 x 1 rows" in ended.out
    assert "does not fit" in ended.out
    rows = [row for row in ended.out.splitlines() if row.rstrip("│ ").endswith(("yes", "no"))]
    totals = {row.split("│")[1].strip(): float(row.split("│")[2]) for row in rows}
    assert {"model.micro_batch: 1", "model.generator.batch_size: 8", "all of these"} <= totals.keys()
    assert totals["all of these"] == min(totals.values())
    assert "60 steps: " in ended.out
    assert "writing token by token waits for memory" in ended.out


def test_a_reward_model_is_planned() -> None:
    words = ("--config", CONFIGS / "experiment" / "pm_testbed" / "reward.yaml", "--architecture", TESTBED)
    ended = plan(*words, "--lengths", "30,10", "--flops", "1e12")
    assert ended.code == 0, ended.out
    assert "557,824 parameters, 557,824 trained; one process; 32-true" in ended.out
    assert "micro-batch: 32 x 2 rows of 40 tokens" in ended.out
    assert "frozen" not in ended.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lengths", "100"), "expected two numbers of tokens"),
        (("--memory", "-1"), "expected a number above 0"),
        (("--utilization", "2"), "expected a share above 0"),
        (("--architecture", "nowhere.json"), "no such file"),
        (("--hardware", "a1000"), "invalid choice"),
        (("--trainer.max_step", "3"), "Did you mean: trainer.max_steps"),
    ],
)
def test_wrong_arguments_are_refused(words: tuple[str, ...], message: str) -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", *words)
    assert ended.code != 0
    assert message in ended.out
    assert "Traceback" not in ended.out


def test_a_missing_model_can_be_described_by_its_architecture(tmp_path: Path) -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", "--model.policy", tmp_path / "policy", "--lengths", "9,9")
    assert ended.code == 2
    assert re.search(r"model folder not found: .*/policy .*a config.json of .* --architecture", ended.out)
