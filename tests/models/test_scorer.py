"""Invalid scores are refused, and the message names the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.models import Loading, ScoreReader
from lit_align.models.export import save_score_model
from lit_align.models.score_model import load_score_model
from lit_align.models.scorer import FunctionScore, KnownScore, RewardModel, ScoreError, Texts, check_scores
from lit_align.testbed.truth import TestbedScore
from lit_align.types import PairBatch
from tests.conftest import pair_batch, tiny_llama

TEXTS = Texts(["Where is it?", "Why?"], ["Here.", "So."])


def scored(value: Any) -> Any:
    def function(prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return value

    return FunctionScore(function)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, float("nan")], "nan for the response 'So.' to the prompt 'Why?'"),
        ([float("inf"), 1.0], "inf for the response 'Here.' to the prompt 'Where is it"),
        ([1.0], "1 scores for 2 responses; expected one for each. The first prompt is 'Where is it"),
        ([1.0, 2.0, 3.0], "3 scores for 2 responses"),
        ([1.0, "2"], "str '2' for the response 'So.'"),
        ([1.0, None], "NoneType 'None'"),
        ([1.0, True], "bool 'True'"),
        (None, "gave NoneType; expected a list of 2 numbers"),
        ("12", "gave str; expected a list of 2 numbers"),
    ],
)
@pytest.mark.fault("H01", "H03", "H04", "H05")
def test_what_cannot_be_used_is_named(value: Any, message: str, batch: PairBatch) -> None:
    scorer = scored(value)
    with pytest.raises(ScoreError) as caught:
        check_scores(scorer(batch, TEXTS), TEXTS, scorer)
    assert message in str(caught.value)


def test_good_ones_pass(batch: PairBatch) -> None:
    for value in ([1, 2.5], (1.0, 2.5), torch.tensor([1.0, 2.5])):
        assert check_scores(scored(value)(batch, TEXTS), TEXTS, scored(value)).tolist() == [1.0, 2.5]


def test_long_prompts_are_shortened() -> None:
    texts = Texts(["x" * 5000], ["y" * 5000])
    with pytest.raises(ScoreError) as caught:
        check_scores([float("nan")], texts, scored(0))
    assert len(str(caught.value)) < 1000


def test_a_known_score_reads_the_texts(batch: PairBatch) -> None:
    texts = Texts(["She plays piano. She keeps bees."], [" She keeps bees."])
    assert KnownScore(TestbedScore())(batch, texts) == [0.85]


def test_a_reward_model_reads_the_ids(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "lm")
    model = load_score_model(str(tmp_path / "lm"), Loading(), head="fresh")
    save_score_model(model, tmp_path / "rm", pad=0)
    batch = pair_batch([[1, 5, 6], [1, 8], [1, 9]], [([14, 15, 2], [2]), ([16, 2], [2]), ([17, 18, 19, 2], [2])])
    scorer = RewardModel(str(tmp_path / "rm"), batch_size=2)
    scorer.load("policy")
    one_side = batch.chosen_side()
    found = scorer(one_side, Texts([], []))
    assert torch.allclose(found, ScoreReader(model).scores(one_side)[:, 0], atol=1e-6)
    assert not found.requires_grad


def test_a_reward_model_must_be_loaded(batch: PairBatch) -> None:
    with pytest.raises(RuntimeError, match="load"):
        RewardModel("rm")(batch, TEXTS)
