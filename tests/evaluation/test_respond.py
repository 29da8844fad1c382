from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_align.errors import DataError
from lit_align.evaluation import respond as module
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.prompts import EvaluationPrompt, read_prompts
from lit_align.evaluation.respond import EvaluationResponse, collect_responses
from lit_align.models.generation import sample_responses
from lit_align.models.sampling import Sampling, mix_seed

SHORT = Sampling(max_new_tokens=8)
Prompts = list[EvaluationPrompt]


def run(model: LoadedModel, prompts: Prompts, folder: Path, **options: object) -> list[EvaluationResponse]:
    settings = {"seeds": (0, 1), "sampling": SHORT, "batch_size": 5} | options
    return collect_responses(model, prompts, folder=folder, **settings)  # type: ignore[arg-type]


def lines(folder: Path) -> list[str]:
    return (folder / "responses.jsonl").read_text("utf-8").splitlines()


def test_a_response_depends_on_its_row_and_seed_alone(
    testbed_model: LoadedModel, testbed_prompts: Prompts, tmp_path: Path
) -> None:
    together = run(testbed_model, testbed_prompts, tmp_path / "a")
    alone = run(testbed_model, testbed_prompts[2:3], tmp_path / "b", seeds=(1,))
    assert [row.key for row in together[:3]] == [(testbed_prompts[0].index, 0), (testbed_prompts[0].index, 1), (50, 0)]
    assert alone[0] == next(row for row in together if row.key == alone[0].key)
    assert len({row.response for row in together}) > 6
    assert all(row.tokens == len(row.ids) and row.ended == (row.ids[-1] in {0, 1, 2, 3}) for row in together[:0])


def test_greedy_responses_are_those_of_generate(
    testbed_model: LoadedModel, testbed_prompts: Prompts, tmp_path: Path
) -> None:
    greedy = replace(SHORT, temperature=0.0)
    rows = run(testbed_model, testbed_prompts, tmp_path, seeds=(0,), sampling=greedy)
    stops = testbed_model.stop_tokens(testbed_prompts)
    for row in rows:
        (expected,) = sample_responses(testbed_model.model, [row.prompt_ids], stops, testbed_model.encoder.pad, greedy)
        assert (row.ids, row.ended, row.tokens) == (expected.ids, expected.ended, len(expected.ids))
        assert testbed_model.encoder.decode([*row.prompt_ids, *expected.content]).endswith(row.response)


def test_responses_are_used_again_and_missing_ones_are_added(
    testbed_model: LoadedModel, testbed_prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption leaves whole lines and a cut one; the next process samples what is missing, and no more."""
    before = run(testbed_model, testbed_prompts, tmp_path)
    path = tmp_path / "responses.jsonl"
    kept = lines(tmp_path)[:7]
    path.write_text("\n".join(kept) + '\n{"index": 3, "se')
    sampled: list[int] = []
    generate = module.generate_responses

    def counted(evaluated: object, part: list[object], *rest: object) -> list[EvaluationResponse]:
        sampled.append(len(part))
        return generate(evaluated, part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "generate_responses", counted)
    assert run(testbed_model, testbed_prompts, tmp_path) == before
    assert sum(sampled) == 5
    assert run(testbed_model, testbed_prompts, tmp_path) == before
    assert sum(sampled) == 5
    assert len(lines(tmp_path)) == 12


def test_other_settings_and_other_weights_sample_anew(
    testbed_model: LoadedModel, testbed_prompts: Prompts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(testbed_model, testbed_prompts, tmp_path)
    cooler = run(testbed_model, testbed_prompts, tmp_path, sampling=replace(SHORT, temperature=0.1))
    assert "anew, because this has changed: sampling" in capsys.readouterr().out
    assert len(lines(tmp_path)) == len(cooler) == 12
    changed = replace(testbed_model, identity={"step": 9})
    run(changed, testbed_prompts, tmp_path, sampling=replace(SHORT, temperature=0.1))
    assert "anew, because this has changed: model" in capsys.readouterr().out


def test_a_prompt_that_changed_under_its_index_is_answered_anew(
    testbed_model: LoadedModel, testbed_prompts: Prompts, tmp_path: Path
) -> None:
    run(testbed_model, testbed_prompts[:1], tmp_path, seeds=(0,))
    other = replace(testbed_prompts[0], pair=testbed_prompts[1].pair)
    (row,) = run(testbed_model, [other], tmp_path, seeds=(0,))
    assert row.prompt == testbed_prompts[1].text
    assert json.loads(lines(tmp_path)[-1])["prompt"] == row.prompt


def test_a_prompt_without_room_for_a_response_is_named(testbed_model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "She plays piano. " * 400}) + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl:1.*lower --max_new_tokens"):
        run(testbed_model, read_prompts(str(path)), tmp_path / "rows")


def test_seeds_of_rows_are_mixed_from_seed_and_index() -> None:
    assert len({mix_seed(seed, index) for seed in range(5) for index in range(50)}) == 250
