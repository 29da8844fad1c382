"""Samples are written identically to every output."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from lit_align import testbed
from lit_align.callbacks.samples import SampledResponses, Samples
from lit_align.testbed.truth import true_score
from tests.runner import BASE, QUIET, distributed, lit_align, metrics, ok, weights

STEPS = (0, 1, 2)
MODELS = ("policy", "reference")
KEPT = ("policy_score", "reference_score", "policy_tokens", "reference_tokens")
COUNT, SHOW, LONGEST = 4, 3, 24


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pairs; every second prompt contains characters that could break a table."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = [json.loads(line) for line in testbed.path("train.jsonl").read_text("utf-8").splitlines()[:8]]
    for line in lines[::2]:
        line["prompt"] = f"a | b \\| c\r\n{line['prompt']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", run, *BASE, *QUIET, "--export.form", "none", "--model.objective", "dpo"),
        *("--data.train", rows, "--data.validation", rows, "--data.batch_size", 4, "--trainer.max_steps", 2),
        *("--trainer.val_check_interval", 1, "--model.optimizer.lr", "0.003", "--samples.score", "TestbedScore"),
        *("--samples.count", COUNT, "--samples.show", SHOW, "--samples.sampling.max_new_tokens", LONGEST, *more),
    )


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a validation after each; its printed output is stored next to it."""
    folder = tmp_path_factory.mktemp("samples") / "run"
    ended = ok(lit_align(*words(folder, rows)))
    folder.with_name("printed").write_text(ended.out, "utf-8")
    return folder


def lines(run: Path, step: int | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    return [line for line in found if step is None or line["step"] == step]


def numbers(run: Path, step: int) -> dict[str, float]:
    return {key: value for line in metrics(run) if line["step"] == step for key, value in line.items()}


@pytest.fixture(scope="module")
def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), {"histograms": 0})
    found.Reload()
    return found


def test_one_line_per_step_and_prompt(run: Path, rows: Path) -> None:
    """Four of eight pairs, evenly spaced, and the same ones at every step."""
    prompts = [json.loads(line)["prompt"] for line in rows.read_text("utf-8").splitlines()][::2]
    for step in STEPS:
        assert [line["prompt"] for line in lines(run, step)] == prompts
    assert len(lines(run)) == len(STEPS) * COUNT
    assert all(set(line) == {"step", "prompt", *MODELS, *KEPT} for line in lines(run))


def test_policy_and_reference_start_equal_and_part(run: Path) -> None:
    assert [line["policy"] for line in lines(run, 0)] == [line["reference"] for line in lines(run, 0)]
    assert [line["policy"] for line in lines(run, 2)] != [line["reference"] for line in lines(run, 2)]
    assert [line["reference"] for line in lines(run, 2)] == [line["reference"] for line in lines(run, 0)]


def test_the_scores_are_the_true_ones(run: Path) -> None:
    for line in lines(run):
        for model in MODELS:
            assert line[f"{model}_score"] == true_score(line["prompt"], line[model])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_follow_from_the_texts(run: Path, step: int, model: str) -> None:
    """A sampled response may have more tokens than the tokenizer needs for the same text, but never fewer."""
    tokenizer = AutoTokenizer.from_pretrained(testbed.path("policy"))
    texts = [line[model] for line in lines(run, step)]
    lengths = np.array([len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts])
    found = {key.rpartition(f"samples/{model}/")[2]: value for key, value in numbers(run, step).items()}
    assert found["length/mean"] == np.mean([line[f"{model}_tokens"] for line in lines(run, step)])
    assert found["score"] == pytest.approx(np.mean([line[f"{model}_score"] for line in lines(run, step)]))
    assert found["distinct"] == len(set(texts)) / len(texts)
    assert lengths.mean() + found["eos_rate"] <= found["length/mean"] <= LONGEST
    assert found["length/p10"] <= found["length/p50"] <= found["length/p90"] <= LONGEST


def printed_scores(output: str) -> tuple[str, str]:
    """Return the mean scores before and after training from the final table."""
    found = re.search(r"mean score\s+│\s+(\S+)\s+│\s+(\S+)", output)
    assert found is not None, output
    return found[1], found[2]


def mean_score(run: Path, step: int) -> str:
    return f"{np.mean([line['policy_score'] for line in lines(run, step)]):.3f}"


def test_before_and_after_are_the_first_and_the_last(run: Path) -> None:
    printed = printed_scores(run.with_name("printed").read_text("utf-8"))
    assert printed == (mean_score(run, 0), mean_score(run, 2))
    assert printed[0] != printed[1]


@pytest.mark.resume("samples from before the first step")
def test_before_survives_a_resumed_run(run: Path, rows: Path, tmp_path: Path) -> None:
    more = ("--trainer.max_steps", 3, "--ckpt_path", run / "checkpoints" / "last.ckpt")
    ended = ok(lit_align(*words(tmp_path, rows, *more)))
    assert printed_scores(ended.out) == (mean_score(run, 0), mean_score(tmp_path, 3))
    assert {line["step"] for line in lines(tmp_path)} == {3}


def test_two_processes_write_what_one_does(run: Path, rows: Path, tmp_path: Path) -> None:
    """The same pairs at every step; responses are sampled once for all processes."""
    for ended in distributed(2, *words(tmp_path, rows, "--data.batch_size", 2)):
        ok(ended)
    assert lines(tmp_path) == lines(run)


def test_sampling_leaves_training_alone(run: Path, rows: Path, tmp_path: Path) -> None:
    ok(lit_align(*words(tmp_path, rows, "--samples.count", 0)))
    assert not (tmp_path / "samples.jsonl").exists()
    trained = weights(run)
    assert all(trained[name].equal(value) for name, value in weights(tmp_path).items())


def test_tensorboard_has_every_number(run: Path, events: EventAccumulator) -> None:
    for step in STEPS:
        drawn = {key: value for key, value in numbers(run, step).items() if key.startswith("samples/")}
        assert len(drawn) == 14
        constants = events.Tensors("constants/text_summary")[-1].tensor_proto.string_val[0].decode()
        for key, value in drawn.items():
            if key.startswith("samples/reference/"):  # the same at every step, so no curve
                assert key not in events.Tags()["scalars"]
                assert f"| {key} | {value:.6g} |" in constants
                continue
            assert {event.step: event.value for event in events.Scalars(key)}[step] == pytest.approx(value)


def test_tensorboard_has_the_lengths(run: Path, events: EventAccumulator) -> None:
    histograms = {event.step: event.histogram_value for event in events.Histograms("samples/policy/lengths")}
    assert set(histograms) == set(STEPS)
    for step, histogram in histograms.items():
        assert histogram.num == COUNT
        assert histogram.sum / COUNT == pytest.approx(numbers(run, step)["samples/policy/length/mean"])


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_tensorboard_shows_the_texts(run: Path, events: EventAccumulator) -> None:
    """TensorBoard's HTML has one row of three cells for each of the first prompts, whatever the texts contain."""
    from tensorboard.plugin_util import markdown_to_safe_html  # warns when it is imported

    tables = {event.step: event.tensor_proto.string_val[0] for event in events.Tensors("samples/text_summary")}
    assert set(tables) == set(STEPS)
    for step, table in tables.items():
        page = markdown_to_safe_html(table)
        assert re.findall(r"<th>(.*?)</th>", page) == ["prompt", *MODELS]
        expected = []
        for line in lines(run, step)[:SHOW]:
            shown = [f"{line[model].strip()} <strong>[{line[f'{model}_score']:.2f}]</strong>" for model in MODELS]
            expected += [line["prompt"].replace("\r", "").replace("\n", "<br>"), *shown]
        visible = [re.sub(r"[\x00-\x1f]", "?", text) for text in expected]
        assert [html.unescape(text) for text in re.findall(r"<td>(.*?)</td>", page)] == visible


def test_numbers_of_responses() -> None:
    """Lengths 1, 2, 3: the median is 2, and the tenth percentile lies a fifth of the way from 1 to 2."""
    found = SampledResponses(["a", "a", "b"], [1, 2, 3], [True, False, True], [0.5, 1.0, 3.0]).numbers()
    assert found == pytest.approx(
        {
            **{"length/p10": 1.2, "length/p50": 2.0, "length/p90": 2.8, "length/mean": 2.0},
            **{"eos_rate": 2 / 3, "distinct": 2 / 3, "score": 1.5},
        }
    )
    assert "score" not in SampledResponses(["a"], [1], [True]).numbers()


@pytest.mark.parametrize("wrong", [{"count": -1}, {"show": -1}, {"batch_size": 0}])
def test_ranges(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))}"):
        Samples(**wrong)
