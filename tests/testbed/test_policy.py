"""The shipped tokenizer and policy are those that the recipe makes."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lit_align import testbed
from lit_align.testbed import preferences
from lit_align.testbed.policy import Skill, blank_policy, measure_skill, respond, train_tokenizer
from lit_align.testbed.world import ASIDES, COMPLETE, FILLERS, KINDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(testbed.path("policy"))
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


def test_shipped_tokenizer_comes_back(tmp_path: Path) -> None:
    train_tokenizer(preferences.sample_splits()["train"]).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (testbed.path("policy") / name).read_text()


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    sentences = " ".join([*KINDS, *chain.from_iterable(KINDS.values()), *ASIDES, *FILLERS, COMPLETE])
    words = {word.strip(".,:") for word in sentences.split()} | {"She", "He"}
    first = COMPLETE.split()[0]  # opens a text, so it has no space in front
    split = {word for word in words - {first} if len(tokenizer.tokenize(f" {word}")) != 1}
    assert not split


@pytest.mark.parametrize("text", ["naïve café, 100 %", "\t日本\n", " She plays piano."])
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_chat_template_ends_turns_and_opens_the_reply(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|bos|><|turn|>user\nHi<|eos|>\n<|turn|>assistant\n"


def test_blank_policy_has_the_shipped_shape_and_leaves_the_seed_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    blank = blank_policy(seed=1)
    assert torch.equal(torch.rand(3), expected)
    shipped = AutoModelForCausalLM.from_pretrained(testbed.path("policy"))
    assert {name: value.shape for name, value in blank.state_dict().items()} == {
        name: value.shape for name, value in shipped.state_dict().items()
    }
    assert all(value.dtype == torch.float32 for value in shipped.state_dict().values())
    assert sum(value.numel() for value in shipped.parameters()) == 557_696
    tokens = shipped.generation_config
    assert (tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id) == (0, 1, 2)


def measure(before: str) -> Skill:
    rows = preferences.read_rows(testbed.path("validation.jsonl"))[:100]
    prompts = [before + row["prompt"] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(testbed.path("policy"))
    policy = AutoModelForCausalLM.from_pretrained(testbed.path("policy"))
    return measure_skill(prompts, respond(policy, tokenizer, prompts))


@pytest.fixture(scope="module")
def plain() -> Skill:
    return measure("")


def test_facts_are_right(plain: Skill) -> None:
    assert plain.precision >= 0.9


def test_there_is_room_above(plain: Skill) -> None:
    assert 0.4 < plain.coverage < 0.7
    assert plain.filler > 0.5


def test_the_policy_knows_better_when_asked(plain: Skill) -> None:
    asked = measure(f"{COMPLETE} ")
    assert asked.precision >= 0.9
    assert asked.coverage > 0.8
    assert asked.score > plain.score + 1
