"""Scores are read where the mask says, and a saved reward model is a Hugging Face one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from lit_align.models import ForwardPass, Loading, ScoreReader, choose_layout
from lit_align.models import score_model as reward
from lit_align.models.export import save_score_model
from lit_align.models.score_model import ScoreModel, Value, load_score_model
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


Layout = Literal["shared", "packed", "padded"]
LAYOUTS: tuple[Layout, ...] = ("shared", "packed", "padded")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad is eos"])
@pytest.mark.fault("F06")
def test_the_score_is_that_of_the_sequence_alone(model: ScoreModel, layout: Layout, pad: int) -> None:
    source = ScoreReader(model, ForwardPass(layout=layout))
    assert torch.allclose(source.scores(pair_batch(PROMPTS, RESPONSES, pad)), torch.tensor(expected(model)), atol=1e-6)


def test_a_response_that_the_other_begins_with(model: ScoreModel) -> None:
    """Its last token stands in the other's row, which goes on behind it; and two that are equal stand there once."""
    batch = pair_batch([[1, 5, 6], [1, 7]], [([8, 9], [8, 9, 10, 2]), ([11, 2], [11, 2])])
    wanted = [
        [by_hand(model, [1, 5, 6, 8, 9]), by_hand(model, [1, 5, 6, 8, 9, 10, 2])],
        [by_hand(model, [1, 7, 11, 2])] * 2,
    ]
    for layout in LAYOUTS:
        found = ScoreReader(model, ForwardPass(layout=layout)).scores(batch)
        assert torch.allclose(found, torch.tensor(wanted), atol=1e-6), layout


def test_gradients_are_those_of_padded_rows(model: ScoreModel) -> None:
    batch, gradients = pair_batch(PROMPTS, RESPONSES), []
    for layout in LAYOUTS:
        model.zero_grad()
        (ScoreReader(model, ForwardPass(layout=layout)).scores(batch) * torch.tensor([1.0, -2.0])).sum().backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for others in gradients[:-1]:
        assert len(others) == len(gradients[-1]) > 10
        for one, padded in zip(others, gradients[-1], strict=True):
            assert torch.allclose(one, padded, atol=1e-6)


@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_on_the_left(model: ScoreModel, layout: Layout, pad: int) -> None:
    batch = pair_batch(PROMPTS, RESPONSES, pad)
    width = batch.input_ids.shape[-1]
    lengths = batch.attention_mask.sum(-1, keepdim=True)
    order = (torch.arange(width) - (width - lengths)) % width
    moved = {name: getattr(batch, name).gather(-1, order) for name in ("input_ids", "attention_mask", "mask")}
    assert not bool(moved["attention_mask"][..., 0].all())
    found = ScoreReader(model, ForwardPass(layout=layout)).scores(replace(batch, **moved))
    assert torch.allclose(found, torch.tensor(expected(model)), atol=1e-5)


def test_tokens_behind_the_response_do_not_matter(model: ScoreModel) -> None:
    """Tokens that a template adds after the end of a turn are kept, but not scored."""
    longer = pair_batch([[1, 5]], [([6, 2, 9, 9], [7, 2, 9, 9])])
    mask = longer.mask & (torch.arange(6) < 4)
    found = ScoreReader(model).scores(replace(longer, mask=mask))
    assert torch.allclose(
        found, torch.tensor([[by_hand(model, [1, 5, 6, 2]), by_hand(model, [1, 5, 7, 2])]]), atol=1e-6
    )


def test_a_saved_one_is_a_sequence_classification_model(model: ScoreModel, tmp_path: Path) -> None:
    save_score_model(model, tmp_path / "rm", pad=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    batch = pair_batch(PROMPTS, RESPONSES)
    flat = theirs(batch.input_ids.flatten(0, 1), attention_mask=batch.attention_mask.flatten(0, 1)).logits
    assert torch.allclose(flat.view(3, 2), ScoreReader(model).scores(batch), atol=1e-6)
    again = load_score_model(str(tmp_path / "rm"), Loading())
    assert torch.equal(ScoreReader(again).scores(batch), ScoreReader(model).scores(batch))


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


def test_weights_that_are_not_finite_are_named(model: ScoreModel, tmp_path: Path) -> None:
    with torch.no_grad():
        model.model.model.norm.weight[0] = torch.nan
    save_score_model(model, tmp_path / "rm", pad=0)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has values that are not finite"):
        load_score_model(str(tmp_path / "rm"), Loading())


def test_another_architecture(tmp_path: Path) -> None:
    """OPT has learned positions, and a body inside the body."""
    config = OPTConfig(
        vocab_size=31, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")
    model = load_score_model(str(tmp_path / "opt"), Loading(), head="fresh")
    batch, source = pair_batch(PROMPTS, RESPONSES), ScoreReader(model)
    assert torch.allclose(source.scores(batch), torch.tensor(expected(model)), atol=1e-5)
    choice = choose_layout(source, batch)
    assert torch.allclose(source.scores(batch), torch.tensor(expected(model)), atol=1e-5), choice


def test_a_model_whose_attention_has_no_such_form(tmp_path: Path) -> None:
    """BLOOM adds a slope to its scores, which packed rows know nothing of; the check falls back to padded ones."""
    config = BloomConfig(vocab_size=31, hidden_size=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    model = load_score_model(str(tmp_path / "bloom"), Loading(), head="fresh")
    batch, source = pair_batch(PROMPTS, RESPONSES), ScoreReader(model)
    choice = choose_layout(source, batch)
    assert choice.layout == source.layout == "padded"
    assert [line.split()[1] for line in choice.warnings] == ["shared", "packed"]


# ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_value_is_read_before_its_token(folder: Path) -> None:
    """The value of token t depends on the tokens before it, and not on the token itself."""
    model = load_score_model(str(folder), Loading(), head="fresh")
    batch = pair_batch(PROMPTS, RESPONSES).chosen_side()
    found = ScoreReader(model)(batch)[:, 0]
    assert found.shape == (3, 5)
    for row, (prompt, (chosen, _)) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        for place in range(len(chosen)):
            assert float(found[row, place]) == pytest.approx(by_hand(model, prompt + chosen[:place]), abs=1e-5)
        assert not found[row, len(chosen) :].any()


def test_values_start_at_zero(folder: Path, batch: PairBatch) -> None:
    assert not ScoreReader(Value().load(str(folder), Loading()))(batch.chosen_side()).any()


def test_a_value_model_may_start_from_a_reward_model(model: ScoreModel, tmp_path: Path, batch: PairBatch) -> None:
    save_score_model(model, tmp_path / "rm", pad=0)
    assert ScoreReader(Value(str(tmp_path / "rm")).load("nowhere", Loading()))(batch.chosen_side()).any()


def test_a_value_model_starts_from_the_same_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the policy's revision, unless the model is another one; what else is asked for is its own."""
    seen: list[Loading] = []
    inner = reward.load_score_model

    def load(name: str, loading: Loading, head: reward.Head = "saved") -> ScoreModel:
        seen.append(loading)
        return inner(str(folder), Loading(), head)

    monkeypatch.setattr("lit_align.models.score_model.load_score_model", load)
    Value().load("some/policy", Loading(revision="v2"))
    Value("some/other").load("some/policy", Loading(revision="v2"))
    Value(loading=Loading(revision="v3")).load("some/policy", Loading(revision="v2"))
    Value(loading=Loading(weights="random", seed=7)).load("some/policy", Loading(revision="v2"))
    assert [loading.revision for loading in seen] == ["v2", None, "v3", "v2"]
    assert (seen[3].weights, seen[3].seed) == ("random", 7)


def test_kernels_are_those_asked_for(folder: Path) -> None:
    """As for a language model: they are refused where there is no CUDA device."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=r"loading\.kernels is liger, whose kernels need a CUDA device"):
        load_score_model(str(folder), Loading(kernels="liger"), head="fresh")


def test_scores_are_float32_under_autocast(model: ScoreModel) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ScoreReader(model).scores(pair_batch(PROMPTS, RESPONSES))
    assert found.dtype == torch.float32
    assert not found.equal(found.bfloat16().float())
    assert torch.allclose(found, torch.tensor(expected(model)), atol=0.05)


def test_a_learning_rate_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        Value(learning_rate=-1.0)
