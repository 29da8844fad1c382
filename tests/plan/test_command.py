"""Plans of configurations, with and without their models and data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonargparse import Namespace

from lit_align.cli import main
from lit_align.data import PreferenceData
from lit_align.plan import command
from lit_align.plan.command import parallelism_of
from lit_align.plan.workload import mean_share
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
FEW_PAIRS = ("--lengths", "9,9", "--data.batch_size", 2)
CLASSES = {"opt": "OPTForCausalLM", "llama": "LlamaForCausalLM"}
TWO_LAYERS = {"num_hidden_layers": 2}
"""Makes a dry run quick: its time grows with the number of layers."""


def plan(*words: object) -> Ended:
    def work() -> None:
        main(["plan", *map(str, words)])

    return forked([work])[0]


def published(name: str, folder: Path, *words: object, **sizes: int) -> str:
    """Plan a published experiment for eight GPUs of 80 GiB, and return the output."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name][0] | sizes))
    config = ("--config", CONFIGS / "experiment" / f"{name}.yaml", "--architecture", folder / "config.json")
    ended = plan(*config, "--lengths", "384,128", "--hardware", "a100-80gb", *words)
    assert ended.code == 0, ended.out
    assert "fits into 80 GiB" in ended.out
    assert "s per optimizer step on the largest batch, at 40%" in ended.out
    return ended.out


@pytest.mark.long
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_fit_the_gpus_of_their_papers(name: str, tmp_path: Path) -> None:
    """Neither models nor data are read."""
    parameters = PUBLISHED[name][1]
    expected = f"{parameters:,} parameters, {parameters:,} trained; 8 processes, fsdp; bf16-mixed"
    assert expected in published(name, tmp_path)


@pytest.mark.long
def test_a_published_experiment_is_planned_from_an_architecture(tmp_path: Path) -> None:
    """Pythia of two layers: two embeddings, the final norm, and 12 h² + 13 h parameters of each layer."""
    parameters = 2 * 50304 * 2560 + 2 * 2560 + 2 * (12 * 2560**2 + 13 * 2560)
    out = published("sr_dpo_pythia2.8b_hh", tmp_path, "--data.batch_size", 2, **TWO_LAYERS)
    assert f"{parameters:,} parameters, {parameters:,} trained; 8 processes, fsdp; bf16-mixed" in out


def preference_matching(name: str, step: str, folder: Path, *words: object, **sizes: int) -> str:
    """Plan a step of a published RLHF run for the device that its file names, and return the output."""
    file = CONFIGS / "experiment" / "preference_matching" / name / f"{step}.yaml"
    room = re.search(r"[Oo]ne GPU of (\d+) GB", file.read_text("utf-8"))
    assert room is not None
    config = ARCHITECTURES[name].to_dict() | {"architectures": [CLASSES[ARCHITECTURES[name].model_type]]} | sizes
    (folder / "config.json").write_text(json.dumps(config, default=str))
    memory = ("--memory", int(float(room[1]) * 1e9 / 2**30))
    ended = plan("--config", file, "--architecture", folder / "config.json", *memory, *words)
    assert ended.code == 0, ended.out
    assert re.search(r"^fits into", ended.out, re.MULTILINE), ended.out
    return ended.out


@pytest.mark.long
@pytest.mark.parametrize("step", ["sft", "reward"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_steps_before_rlhf_fit_on_the_device_that_their_files_name(name: str, step: str, tmp_path: Path) -> None:
    preference_matching(name, step, tmp_path, "--lengths", "384,128", "--flops", "3e14")


@pytest.mark.parametrize(
    ("dtype", "rate"), [pytest.param("float32", "1.95e+13", marks=pytest.mark.long), ("bfloat16", "3.12e+14")]
)
def test_the_peak_depends_on_the_dtype_of_the_weights(dtype: str, rate: str) -> None:
    words = ("--config", CONFIGS / "quickstart.yaml", "--model.loading.dtype", dtype, "--hardware", "a100-80gb")
    assert f"of {rate} operations per second" in plan(*words, *FEW_PAIRS).out


def test_a_cpu_s_rate_is_that_of_its_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products, of 0.2 and of 0.05 seconds, until half a second is over."""
    clock = iter([0, 0.1, 0.3, 0.35, 0.4, 0.6])
    monkeypatch.setattr(command.time, "perf_counter", lambda: next(clock))
    assert command.cpu_rate(64) == pytest.approx((2 * 512 * 64 * 256) / 0.05)


def test_the_time_of_a_run_is_that_of_its_average_batch(tmp_path: Path) -> None:
    rows = [{"prompt": "Say.", "chosen": " a" * n, "rejected": " b"} for n in (4, 4, 4, 20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = PreferenceData(str(tmp_path / "rows.jsonl"), tokenizer="testbed:policy", batch_size=1)
    assert mean_share(data) == 1.0
    data.splits["train"] = data.prepare_split("train")
    widths = data.splits["train"].store.widths.tolist()
    assert mean_share(data) == pytest.approx(sum(widths) / 4 / max(widths))
    assert mean_share(data) < 0.8


def test_the_quickstart_is_planned_from_its_data() -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", "--data.batch_size", 4)
    assert re.search(r"\d s per optimizer step on the largest batch, at 75% of \S+ operations per second", ended.out)
    assert ended.code == 0, ended.out
    assert "557,696 parameters, 557,696 trained; one process; 32-true" in ended.out
    assert "(the largest of the data)" in ended.out
    assert "100 steps:" in ended.out
    (program,) = (line.split("│")[2:-1] for line in ended.out.splitlines() if "program, data" in line)
    assert all(0.2 < float(value) < 4 for value in program), "GiB of this process, in every phase"
    assert "allocator's gaps" in ended.out
    assert "Warning" not in ended.out


@pytest.mark.long
def test_suggestions_make_a_run_fit(tmp_path: Path) -> None:
    """Four pairs of 2,000 tokens, whose activations take more than the weights and optimizer states."""
    folder = model(tmp_path / "model", **TWO_LAYERS)
    words = ("--config", CONFIGS / "quickstart.yaml", "--model.policy", folder, "--trainer.accelerator", "auto")
    more = ("--trainer.devices", 4, "--data.batch_size", 4, "--lengths", "1000,500", "--memory", "0.75")
    ended = plan(*words, *more)
    assert ended.code == 0, ended.out
    assert "does not fit into 0.75 GiB" in ended.out
    rows = [line for line in ended.out.splitlines() if line.startswith("│")]
    settings = [row for row in rows if row.rstrip("│ ").endswith(("yes", "no"))]
    assert any("gradient_checkpointing" in row for row in settings)
    assert any("trainer.strategy: fsdp" in row for row in settings)
    assert "all of these" in settings[-1]
    assert settings[-1].rstrip("│ ").endswith("yes")


TESTBED = path("policy") / "config.json"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("opt1.3b_hh", TWO_LAYERS), *(pytest.param(name, {}, marks=pytest.mark.long) for name in ARCHITECTURES)],
)
def test_rlhf_fits_on_the_device_that_its_file_names(name: str, sizes: dict[str, int], tmp_path: Path) -> None:
    """All its models have the given architecture, and are counted."""
    out = preference_matching(name, "rlhf", tmp_path, **sizes)
    for word in ("writing", "scoring", "forward", "backward", "step", "keys and values", "frozen models"):
        assert word in out


@pytest.mark.long
def test_suggestions_for_on_policy_runs() -> None:
    words = ("--config", CONFIGS / "experiment" / "pm_testbed" / "rlhf.yaml", "--architecture", TESTBED)
    more = ("--data.batch_size", 4, "--memory", "0.01", "--flops", "1e12", "--trainer.accelerator", "cpu")
    ended = plan(*words, *more)
    assert ended.code == 0, ended.out
    assert "rollout: 16 x 1 rows" in ended.out
    assert "does not fit" in ended.out
    rows = [row for row in ended.out.splitlines() if row.rstrip("│ ").endswith(("yes", "no"))]
    totals = {row.split("│")[1].strip(): float(row.split("│")[2]) for row in rows}
    assert {"model.micro_batch: 1", "model.generator.batch_size: 8", "all of these"} <= totals.keys()
    assert totals["all of these"] == min(totals.values())
    assert "60 steps: " in ended.out
    assert "writing token by token waits for memory" in ended.out


@pytest.mark.long
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
        (("--trainer.max_step", "3"), "did you mean trainer.max_steps"),
    ],
)
def test_wrong_arguments_are_refused(words: tuple[str, ...], message: str) -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", *words)
    assert ended.code != 0
    assert message in ended.out
    assert "Traceback" not in ended.out


@pytest.mark.parametrize("strategy", ["fsdp", Namespace(class_path="lit_align.strategies.FullySharded")])
def test_a_sharded_run_is_known_by_name_and_by_class(strategy: object) -> None:
    trainer = {"devices": 8, "num_nodes": 1, "accumulate_grad_batches": 1, "precision": None, "accelerator": "auto"}
    assert parallelism_of(Namespace(strategy=strategy, **trainer)).shards == 8


def test_a_missing_model_can_be_described_by_its_architecture(tmp_path: Path) -> None:
    ended = plan("--config", CONFIGS / "quickstart.yaml", "--model.policy", tmp_path / "policy", "--lengths", "9,9")
    assert ended.code == 2
    assert re.search(r"model folder not found: .*/policy .*a config.json of .* --architecture", ended.out)
