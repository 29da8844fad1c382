"""Dialogues written as text are rendered in the chat template, or stay text."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from lit_align.data import PreferenceData
from lit_align.data.text.render import as_messages
from lit_align.errors import DataError
from lit_align.types import PreferencePair
from tests.data.families import tokenizer_of

ASKED = "\n\nHuman: Where?\n\nAssistant: There.\n\nHuman: Sure?\n\nAssistant:"
HH = {"chosen": f"{ASKED} Yes.", "rejected": f"{ASKED} No."}
PLAIN = {"prompt": "Where?", "chosen": " Here.", "rejected": " There."}
OPENED = (
    "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\nThere.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
)


def prepared(folder: Path, row: dict[str, Any], template: bool = True, **settings: Any) -> tuple[PreferenceData, str]:
    """The data, and what was warned of."""
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template if template else None
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    data = PreferenceData(train=str(folder / "rows.jsonl"), tokenizer=str(folder / "tokenizer"), **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.prepare_all()
    return data, "\n".join(str(warning.message) for warning in caught)


def texts(data: PreferenceData) -> tuple[str, str]:
    pair = data.splits["train"].store[0]
    return data.decode(pair.prompt), data.decode(pair.chosen.ids)


@pytest.mark.parametrize("render", [None, "chat"])
def test_a_tokenizer_with_a_template_renders_dialogues(render: Any, tmp_path: Path) -> None:
    data, warned = prepared(tmp_path, HH, render=render)
    assert texts(data) == (OPENED, "Yes.<|im_end|>")
    assert "plain text" not in warned


def test_text_leaves_them_as_they_are(tmp_path: Path) -> None:
    data, warned = prepared(tmp_path, HH, render="text")
    assert texts(data) == (ASKED, " Yes.<|im_end|>")
    assert "chat template" not in warned


def test_a_tokenizer_without_a_template_leaves_them(tmp_path: Path) -> None:
    assert texts(prepared(tmp_path, HH, template=False)[0]) == (ASKED, " Yes.<|im_end|>")


@pytest.mark.parametrize(
    ("template", "render", "warns"), [(True, None, True), (True, "text", False), (False, None, False)]
)
def test_plain_text_in_front_of_a_template_is_warned_of(
    template: bool, render: Any, warns: bool, tmp_path: Path
) -> None:
    data, warned = prepared(tmp_path, PLAIN, template, render=render)
    assert texts(data)[0] == "Where?"
    assert ("plain text, and the tokenizer has a chat template that is not used" in warned) is warns


def test_empty_turns_and_turns_of_one_role_in_a_row() -> None:
    prompt = "Be kind.\n\nHuman: a\n\nAssistant:\n\nHuman: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    messages = as_messages(PreferencePair(prompt, " x", None)).prompt
    said = [(message["role"], message["content"]) for message in messages if not isinstance(message, str)]
    assert said == [("system", "Be kind."), ("user", "a\n\nb"), ("assistant", "c"), ("user", "d")]


def test_a_dialogue_without_a_question() -> None:
    with pytest.raises(DataError, match="rows.jsonl:7: no human turn stands before the response"):
        as_messages(PreferencePair("\n\nHuman:\n\nAssistant:", " x", " y", "rows.jsonl:7"))
