from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_align.errors import DataError
from lit_align.evaluation.prompts import read_prompts


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_each_prompt_is_taken_once_with_the_index_of_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": text, "chosen": "x", "rejected": "y"} for text in ("a", "b", "a", "c")]
    prompts = read_prompts(write(tmp_path / "pairs.jsonl", rows))
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "a"), (1, "b"), (3, "c")]
    assert prompts[0].pair.chosen is None


def test_prompts_alone_need_no_format(tmp_path: Path) -> None:
    assert [p.text for p in read_prompts(write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}]))] == [
        "a",
        "b",
    ]


def test_dialogues_and_messages_are_read_as_for_training(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: 2 + 2?\n\nAssistant:"
    hh = write(tmp_path / "hh.jsonl", [{"chosen": f"{dialogue} 4", "rejected": f"{dialogue} 5"}])
    assert read_prompts(hh)[0].text == dialogue
    chat = write(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "2 + 2?"}]}])
    assert read_prompts(chat)[0].text == "2 + 2?"


def test_plain_prompts_become_user_messages_where_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "a"}])
    assert read_prompts(path, chat=True)[0].pair.prompt == ({"role": "user", "content": "a"},)


def test_a_limit_takes_evenly_spaced_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": str(number)} for number in range(10)])
    assert [prompt.text for prompt in read_prompts(path, limit=4)] == ["0", "2", "5", "7"]
    assert len(read_prompts(path, limit=99)) == 10


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl:2"):
        read_prompts(write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": ""}]))
