"""Scores are read where the mask says, and a saved reward model is a Hugging Face one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from lit_align.models import Loading
from lit_align.models.reward import ScoreModel, load_score_model, response_scores, save_score_model
from lit_align.models.value import Value, response_values
from lit_align.types import PairBatch
from tests.conftest import pair_batch, tiny_llama

PROMPTS = [[1, 5, 6, 7], [1, 8], [1, 9, 10, 11, 12, 13]]
RESPONSES = [([14, 15, 2], [16, 2]), ([17, 18, 19, 20, 2], [21, 2]), ([22, 2], [23, 24, 25, 2])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def model(folder: Path) -> ScoreModel:
    return load_score_model(str(folder), Loading(), head="fresh")


def by_hand(model: ScoreModel, ids: list[int]) -> float:
    """The sequence alone: body, then head, at the last token."""
    hidden = model.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(model.model.score(hidden))


def expected(model: ScoreModel) -> list[list[float]]:
    pairs = zip(PROMPTS, RESPONSES, strict=True)
    return [[by_hand(model, prompt + side) for side in sides] for prompt, sides in pairs]


@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad is eos"])
@pytest.mark.fault("F06")
def test_the_score_is_that_of_the_sequence_alone(model: ScoreModel, pad: int) -> None:
    found = response_scores(model, pair_batch(PROMPTS, RESPONSES, pad))
    assert torch.allclose(found, torch.tensor(expected(model)), atol=1e-6)


@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad is eos"])
def test_padding_on_the_left(model: ScoreModel, pad: int) -> None:
    batch = pair_batch(PROMPTS, RESPONSES, pad)
    width = batch.input_ids.shape[-1]
    lengths = batch.attention_mask.sum(-1, keepdim=True)
    order = (torch.arange(width) - (width - lengths)) % width
    moved = {name: getattr(batch, name).gather(-1, order) for name in ("input_ids", "attention_mask", "mask")}
    assert not bool(moved["attention_mask"][..., 0].all())
    found = response_scores(model, replace(batch, **moved))
    assert torch.allclose(found, torch.tensor(expected(model)), atol=1e-5)


def test_tokens_behind_the_response_do_not_matter(model: ScoreModel) -> None:
    """What a template writes behind the end of a turn is there, unscored."""
    longer = pair_batch([[1, 5]], [([6, 2, 9, 9], [7, 2, 9, 9])])
    mask = longer.mask & (torch.arange(6) < 4)
    found = response_scores(model, replace(longer, mask=mask))
    assert torch.allclose(
        found, torch.tensor([[by_hand(model, [1, 5, 6, 2]), by_hand(model, [1, 5, 7, 2])]]), atol=1e-6
    )


def test_a_saved_one_is_a_sequence_classification_model(model: ScoreModel, tmp_path: Path) -> None:
    save_score_model(model, tmp_path / "rm", pad=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    batch = pair_batch(PROMPTS, RESPONSES)
    flat = theirs(batch.input_ids.flatten(0, 1), attention_mask=batch.attention_mask.flatten(0, 1)).logits
    assert torch.allclose(flat.view(3, 2), response_scores(model, batch), atol=1e-6)
    again = load_score_model(str(tmp_path / "rm"), Loading())
    assert torch.equal(response_scores(again, batch), response_scores(model, batch))


def test_a_language_model_is_no_reward_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="no score head"):
        load_score_model(str(folder), Loading())


def test_a_fresh_head_depends_on_its_seed_alone(folder: Path) -> None:
    torch.manual_seed(1)
    one = load_score_model(str(folder), Loading(), head="fresh")
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    two = load_score_model(str(folder), Loading(), head="fresh")
    other = load_score_model(str(folder), Loading(seed=1), head="fresh")
    assert torch.equal(one.model.score.weight, two.model.score.weight)
    assert not torch.equal(one.model.score.weight, other.model.score.weight)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_that_are_missing_are_named(folder: Path, tmp_path: Path) -> None:
    weights = {name: value for name, value in tiny_llama().state_dict().items() if "norm.weight" not in name}
    LlamaForCausalLM(tiny_llama().config).save_pretrained(tmp_path / "part", state_dict=weights)
    with pytest.raises(ValueError, match=r"do not fill the model.*norm"):
        load_score_model(str(tmp_path / "part"), Loading(), head="fresh")


def test_another_architecture(tmp_path: Path) -> None:
    """OPT has learned positions, and a body inside the body."""
    config = OPTConfig(
        vocab_size=31, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    model = load_score_model(str(tmp_path / "opt"), Loading(), head="fresh")
    found = response_scores(model, pair_batch(PROMPTS, RESPONSES))
    assert torch.allclose(found, torch.tensor(expected(model)), atol=1e-5)


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_value_is_read_before_its_token(folder: Path) -> None:
    """The value of token t depends on what stands before it, and not on the token itself."""
    model = load_score_model(str(folder), Loading(), head="fresh")
    batch = pair_batch(PROMPTS, RESPONSES).chosen_side()
    found = response_values(model, batch)
    assert found.shape == (3, 5)
    for row, (prompt, (chosen, _)) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for place in range(len(chosen)):
            assert float(found[row, place]) == pytest.approx(by_hand(model, prompt + chosen[:place]), abs=1e-5)
        assert not found[row, len(chosen) :].any()


def test_values_start_at_zero(folder: Path, batch: PairBatch) -> None:
    assert not response_values(Value().load(str(folder)), batch.chosen_side()).any()


def test_a_value_model_may_start_from_a_reward_model(model: ScoreModel, tmp_path: Path, batch: PairBatch) -> None:
    save_score_model(model, tmp_path / "rm", pad=0)
    assert response_values(Value(str(tmp_path / "rm")).load("nowhere"), batch.chosen_side()).any()


def test_a_learning_rate_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        Value(learning_rate=-1.0)
