import pytest

from lit_align.data.text.render import QUALITY_PROMPT, place_in_chat, place_in_text
from tests.data.examples import turns


def test_the_text_is_the_papers() -> None:
    assert QUALITY_PROMPT.startswith("Please generate a response with a usefulness rating of 100 out of 100")
    assert QUALITY_PROMPT.endswith("and 1 is the minimum. Query:")


def test_plain_text_follows_the_quality_prompt_after_a_blank() -> None:
    placed = place_in_text("2 + 2 =")
    assert f"{placed.before}p{placed.after}" == "p 2 + 2 ="


@pytest.mark.parametrize("blank", [" ", ""])
def test_a_dialogue_has_it_in_the_last_human_turn(blank: str) -> None:
    placed = place_in_text(f"\n\nHuman: a\n\nAssistant: b\n\nHuman:{blank}c\n\nAssistant:")
    assert f"{placed.before}p{placed.after}" == "\n\nHuman: a\n\nAssistant: b\n\nHuman: p c\n\nAssistant:"


def test_text_that_only_quotes_a_dialogue_is_plain() -> None:
    assert place_in_text("Continue: \n\nHuman: a").before == ""


def test_a_conversation_has_it_in_the_last_user_turn() -> None:
    system = {"role": "system", "content": "s"}
    prompt = (system, *turns("a", "b", "c"))
    assert place_in_chat(prompt, "p") == (system, *turns("a", "b", "p c"))
    assert prompt[-1]["content"] == "c"


def test_a_conversation_without_user_has_no_place() -> None:
    with pytest.raises(ValueError, match="no user turn"):
        place_in_chat(({"role": "system", "content": "s"},), "p")
