"""The shipped policy copies faithfully, and leaves room above it."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed
from lit_align.testbed import corpus
from lit_align.testbed.probe import Skill, respond, skill
from lit_align.testbed.world import COMPLETE


def measure(before: str) -> Skill:
    rows = corpus.read_rows(testbed.path("validation.jsonl"))[:100]
    prompts = [before + row["prompt"] for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(testbed.path("policy"))
    policy = AutoModelForCausalLM.from_pretrained(testbed.path("policy"))
    return skill(prompts, respond(policy, tokenizer, prompts))


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
