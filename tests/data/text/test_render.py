import pytest

from lit_align.data.text.render import QUALITY_PROMPT, QualityPosition, insert_quality_prompt, split_for_quality_prompt
from tests.data.examples import turns


def test_the_text_is_the_papers() -> None:
    assert QUALITY_PROMPT.startswith("Please generate a response with a usefulness rating of 100 out of 100")
    assert QUALITY_PROMPT.endswith("and 1 is the minimum. Query:")


@pytest.mark.parametrize("position", ["start", "last_turn"])
def test_plain_text_follows_the_quality_prompt_after_a_blank(position: QualityPosition) -> None:
    before, after = split_for_quality_prompt("2 + 2 =", position)
    assert f"{before}p{after}" == "p 2 + 2 ="


@pytest.mark.parametrize("blank", [" ", ""])
def test_a_dialogue_has_it_in_the_last_human_turn(blank: str) -> None:
    before, after = split_for_quality_prompt(
        f"\n\nHuman: a\n\nAssistant: b\n\nHuman:{blank}c\n\nAssistant:", "last_turn"
    )
    assert f"{before}p{after}" == "\n\nHuman: a\n\nAssistant: b\n\nHuman: p c\n\nAssistant:"


def test_a_dialogue_has_it_in_front() -> None:
    dialogue = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    before, after = split_for_quality_prompt(dialogue, "start")
    assert f"{before}p{after}" == f"p{dialogue}"


def test_text_that_only_quotes_a_dialogue_is_plain() -> None:
    assert split_for_quality_prompt("Continue: \n\nHuman: a", "last_turn")[0] == ""


def test_a_conversation_has_it_in_its_first_or_last_user_turn() -> None:
    system = {"role": "system", "content": "s"}
    prompt = (system, *turns("a", "b", "c"))
    assert insert_quality_prompt(prompt, "p", "last_turn") == (system, *turns("a", "b", "p c"))
    assert insert_quality_prompt(prompt, "p", "start") == (system, *turns("p a", "b", "c"))
    assert prompt[-1]["content"] == "c"


def test_a_conversation_without_user_has_no_place() -> None:
    with pytest.raises(ValueError, match="no user turn"):
        insert_quality_prompt(({"role": "system", "content": "s"},), "p", "start")
