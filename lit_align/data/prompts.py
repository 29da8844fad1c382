"""A quality prompt p is put in front of the query x; p ⊕ x asks for a better response to the same question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lit_align.data.pair_formats import ASSISTANT, HUMAN
from lit_align.types import Message

QUALITY_PROMPT = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following query. "
    "Note that the response should be harmless. The term 100 indicates the level of usefulness, "
    "where 100 is the maximum and 1 is the minimum. Query:"
)
"""The text of arXiv:2405.21040."""


@dataclass(frozen=True)
class Placed:
    """A text prompt with p in it: what stands before p, and what stands behind it."""

    before: str
    after: str


def place_in_text(prompt: str) -> Placed:
    r"""Where p goes in a text prompt: in front of it, or of the last human turn if it is a dialogue.

    Args:
        prompt: the prompt without p.

    >>> place_in_text("2 + 2 =")
    Placed(before='', after=' 2 + 2 =')
    >>> place_in_text("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:")
    Placed(before='\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: ', after=' 2 + 2?\n\nAssistant:')
    """
    before, mark, last = prompt.rpartition(HUMAN)
    if not mark or not prompt.endswith(ASSISTANT):
        return Placed("", f" {prompt}")
    return Placed(f"{before}{mark} ", f" {last.removeprefix(' ')}")


Messages: TypeAlias = tuple[Message, ...]


def place_in_chat(prompt: Messages, quality: str) -> Messages:
    """The conversation with p in its last user turn, in front of the turn's text.

    Args:
        prompt: the messages before the response.
        quality: the text of p.

    Raises:
        ValueError: no turn of the conversation is the user's.

    >>> place_in_chat(({"role": "user", "content": "2 + 2?"},), "Answer well:")
    ({'role': 'user', 'content': 'Answer well: 2 + 2?'},)
    """
    turns = [number for number, message in enumerate(prompt) if message["role"] == "user"]
    if not turns:
        raise ValueError("the conversation has no user turn to put the quality prompt in")
    last = turns[-1]
    asked = {**prompt[last], "content": f"{quality} {prompt[last]['content']}"}
    return (*prompt[:last], asked, *prompt[last + 1 :])
