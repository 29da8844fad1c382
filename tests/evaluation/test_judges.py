from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_align import extensions
from lit_align.evaluation.judges import (
    FunctionJudge,
    JudgeError,
    PairwiseFunction,
    RewardModelJudge,
    make_judge,
)
from lit_align.evaluation.prompts import EvaluationPrompt, read_prompts
from lit_align.models import LoRA
from lit_align.models.export import end_scores, pooling_pad, save_score_model
from lit_align.models.loading import Loading
from lit_align.models.score_model import load_score_model
from lit_align.modules import LitReward
from lit_align.testbed.truth import true_score

Prompts = list[EvaluationPrompt]


def test_the_testbed_judges_by_its_truth(testbed_prompts: Prompts) -> None:
    responses = [" She plays piano."] * len(testbed_prompts)
    scores = make_judge("testbed").scores(testbed_prompts, responses)
    expected = [true_score(prompt.text, " She plays piano.") for prompt in testbed_prompts]
    assert scores == pytest.approx(expected, abs=1e-6)


def test_a_reward_model_reads_with_its_own_tokenizer(testbed_prompts: Prompts, tmp_path: Path) -> None:
    """The scores are those of transformers on the exported folder, a text at a time."""
    from transformers import AutoModelForSequenceClassification

    from lit_align.data.text.tokenizer import load_tokenizer

    model, tokenizer = (
        load_score_model("testbed:policy", Loading(seed=3), head="fresh"),
        load_tokenizer("testbed:policy"),
    )
    save_score_model(model, tmp_path, pooling_pad(tokenizer))
    tokenizer.save_pretrained(str(tmp_path))
    responses = [f" He has {number} cats." for number in range(len(testbed_prompts))]
    scores = RewardModelJudge(str(tmp_path), batch_size=4).scores(testbed_prompts, responses)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for prompt, response, score in zip(testbed_prompts, responses, scores, strict=True):
        ids = [*tokenizer(prompt.text + response)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            assert score == pytest.approx(float(theirs(input_ids=torch.tensor([ids])).logits[0, 0]), abs=1e-4)


def test_a_reward_models_adapter_judges_with_the_tokenizer_of_its_base(
    testbed_prompts: Prompts, tmp_path: Path
) -> None:
    """Its padding token may be beyond the embedding of the base."""
    torch.manual_seed(0)
    model = LitReward("testbed:policy", lora=LoRA(rank=2)).build_trained_model()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    save_score_model(model, tmp_path, 0, form="adapter")
    judge = RewardModelJudge(str(tmp_path), batch_size=4)
    responses = [f" He has {number} cats." for number in range(len(testbed_prompts))]
    scores = judge.scores(testbed_prompts, responses)
    tokenizer = judge.encoder.tokenizer
    texts = [prompt.text + response for prompt, response in zip(testbed_prompts, responses, strict=True)]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert scores == pytest.approx(end_scores(model.eval(), ids).tolist(), abs=1e-4)
    tokenizer.save_pretrained(str(tmp_path))
    wider = RewardModelJudge(str(tmp_path), batch_size=4)
    wider.encoder.tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    assert wider.encoder.pad >= wider.model.rows
    assert wider.scores(testbed_prompts, responses) == pytest.approx(scores, abs=1e-5)


def test_functions_are_checked(testbed_prompts: Prompts) -> None:
    with pytest.raises(JudgeError, match="mine gave nan for test.jsonl:1"):
        FunctionJudge(lambda prompts, responses: [float("nan")] * len(prompts), "mine").scores(
            testbed_prompts, ["x"] * 6
        )
    with pytest.raises(JudgeError, match="mine gave 2 for"):
        PairwiseFunction(lambda *texts: [2] * 6, "mine").comparisons(testbed_prompts, ["x"] * 6, ["y"] * 6)
    with pytest.raises(JudgeError, match="mine gave 1 numbers for 6 prompts"):
        PairwiseFunction(lambda *texts: [1], "mine").comparisons(testbed_prompts, ["x"] * 6, ["y"] * 6)
    with pytest.raises(JudgeError, match="mine raised ZeroDivisionError"):
        PairwiseFunction(lambda *texts: [1 / 0], "mine").comparisons(testbed_prompts, ["x"] * 6, ["y"] * 6)


def test_a_pairwise_function_gets_prompts_and_both_responses(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "2 + 2?"}]}) + "\n")
    calls: list[object] = []

    def compare(*texts: object) -> list[float]:
        calls.append(texts)
        return [1.0]

    assert PairwiseFunction(compare, "mine").comparisons(read_prompts(str(path)), ["4"], ["5"]) == [1.0]
    assert calls == [(["2 + 2?"], ["4"], ["5"])]


@pytest.mark.parametrize(
    "setting", ["reward", "reward:", "truth", "scores:none_such.f", "scores:math.none_such", "scores:f"]
)
def test_unknown_judges_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        make_judge(setting)


@pytest.mark.parametrize("kind", ["scores", "compares"])
def test_functions_of_modules_that_are_not_named_are_not_imported(kind: str) -> None:
    """A configuration must not call what is in the standard library, say, with texts of the data."""
    for name in ("subprocess.call", "os.system", "tests.none", "lit_align.callbacks.export.shutil"):
        with pytest.raises(ValueError, match="not allowed; expected module.function"):
            make_judge(f"{kind}:{name}")


def test_functions_of_modules_that_are_named_are_called(
    testbed_prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "length_judge.py").write_text(
        "def words(prompts, responses):\n    return [len(r.split()) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(extensions, "_trusted", {"length_judge"})
    judge = make_judge("scores:length_judge.words")
    assert judge.scores(testbed_prompts, ["a b"] * len(testbed_prompts)) == [2.0] * len(testbed_prompts)
