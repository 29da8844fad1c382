"""Rows that cannot be trained on are errors that name file, line and reason, before any model is read."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from lit_align.data import DataError, PreferenceData
from lit_align.data.prepared.prepare import SCORES_DISAGREE
from lit_align.data.text.render import CONTROL_IN_TEXT
from lit_align.data.text.tokenize import MERGED, PROMPT_CUT
from tests.faults.cases import cases

GOOD = {"prompt": "Where is Rome? ", "chosen": "In Italy.", "rejected": "In Spain."}
USER = {"role": "user", "content": "Hello"}
LONG_PROMPT = {**GOOD, "prompt": "Where is Rome? " * 40}


def chat(answer: object, *before: Mapping[str, Any]) -> list[object]:
    return [*(before or (USER,)), {"role": "assistant", "content": answer}]


def line(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


REFUSED: dict[str, tuple[object, str]] = {
    "A01": ({**GOOD, "chosen": ""}, "chosen: found empty"),
    "A02": ({**GOOD, "chosen": "", "rejected": ""}, "chosen: found empty"),
    "A03": ({**GOOD, "prompt": ""}, "prompt: found empty; expected text"),
    "A04": ({**GOOD, "rejected": "In Italy."}, "chosen and rejected are the same: 'In Italy.'"),
    "A05": ({"chosen": "Rome. Yes", "rejected": "Rome. Yes"}, "column 'prompt' is missing"),
    "A06": ({"chosen": "Rome", "rejected": ""}, "column 'prompt' is missing"),
    "A07": ({"chosen": "Where? In the sky", "rejected": "Where? In the sk"}, "column 'prompt' is missing"),
    "A08": ({"chosen": "one text", "rejected": "another"}, "column 'prompt' is missing"),
    "A09": ({**GOOD, "chosen": None}, "chosen: found null"),
    "A10": ({**GOOD, "chosen": 3}, "chosen: found a number \\(3\\)"),
    "A11": ({**GOOD, "chosen": ["In Italy."]}, "chosen: found a list"),
    "A12": ({"prompt": [USER], "chosen": chat("a")[1:], "rejected": chat("b")[1:]}, "prompt: found a list"),
    "A14": (b'{"prompt": "x", "chosen": "\\ud800", "rejected": "b"}\n', "unpaired surrogate"),
    "A24": ({"question": "x", "chosen": "a", "rejected": "b"}, "column 'prompt' is missing; found"),
    "A24 nearly": ({"promt": "x", "chosen": "a", "rejected": "b"}, "did you mean 'promt' to be 'prompt'"),
    "A27": (b'{"prompt": "x", "chosen": \n', "not valid JSON: Expecting value"),
    "A28": (b'{"prompt": "x", "cho', "not valid JSON: Unterminated string"),
    "A29b": ('{"prompt": "x", "chosen": "café", "rejected": "b"}\n'.encode("latin-1"), "not UTF-8: byte 0xe9"),
    "A30": ({"prompt": [USER], "chosen": chat("a")[1:], "rejected": chat("b")[1:]}, "prompt: found a list"),
    "A30b": (b'{"prompt": "x", "chosen": "a", "chosen": "c", "rejected": "b"}\n', "key 'chosen' occurs twice"),
    "A36": ({**GOOD, "prompt": None}, "prompt: found null"),
    "A37": ({**GOOD, "chosen": "  \n "}, "chosen: found only blanks"),
    "A39": ({**GOOD, "chosen_input_ids": [1, 2, 3]}, "chosen_input_ids.* made elsewhere"),
    "A41": ({**GOOD, "margin": float("nan")}, "margin: found nan; expected a finite number"),
    "A38": ({**GOOD, "ref_chosen_logps": -3.0}, "ref_chosen_logps.* made elsewhere"),
    "A38b": ({**GOOD, "reference_chosen_logps": -3.0}, "reference_chosen_logps.* made elsewhere"),
}
CHAT: dict[str, tuple[object, str]] = {
    "A34": ({"chosen": chat("a"), "rejected": chat("b", {"role": "user", "content": "Other"})}, "Other|differ"),
    "A35": ({"chosen": [USER, {"role": "assistant"}], "rejected": chat("b")}, "message without 'content'"),
}


def prepared(path: Path, **settings: object) -> PreferenceData:
    data = PreferenceData(train=str(path), tokenizer="testbed:policy", cache=None, **settings)  # type: ignore[arg-type]
    data.prepare_all()
    return data


def raised(path: Path, **settings: object) -> str:
    with pytest.raises((DataError, ValueError)) as error:
        prepared(path, **settings)
    return str(error.value)


def said(path: Path, **settings: object) -> str:
    """Return the warnings that are printed while the data is prepared."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared(path, **settings)
    return "\n".join(str(warning.message) for warning in caught)


def file(folder: Path, rows: Sequence[object]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else line(row) for row in rows))
    return path


def ids(data: PreferenceData) -> list[tuple[list[int], list[int]]]:
    """Prompt and chosen response of each training pair."""
    return [(list(pair.prompt), list(pair.chosen.ids)) for pair in data.splits["train"].store]


@pytest.mark.parametrize("fault", cases(REFUSED))
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, fault: str) -> None:
    """The faulty row follows two good ones; the message names line 3 and the reason."""
    row, reason = REFUSED[fault]
    message = raised(file(tmp_path, [GOOD, GOOD, row]))
    assert re.search(rf"pairs\.jsonl:3: .*{reason}", message), message
    assert "1 of 3 rows cannot be used" in message


@pytest.mark.parametrize("fault", cases(REFUSED))
def test_a_row_that_cannot_be_used_is_left_out_and_counted(tmp_path: Path, fault: str) -> None:
    row, _ = REFUSED[fault]
    data = prepared(file(tmp_path, [GOOD, GOOD, row]), on_bad_row="drop", max_dropped=0.5)
    split = data.splits["train"]
    assert (split.read, len(split.store), sum(split.dropped.values())) == (3, 2, 1)
    assert len(data.lengths["train"].dropped) == 1


@pytest.mark.parametrize("fault", cases(CHAT))
def test_a_conversation_that_cannot_be_used_is_named(tmp_path: Path, fault: str) -> None:
    row, reason = CHAT[fault]
    path = file(tmp_path, [{"chosen": chat("a"), "rejected": chat("b")}, row])
    assert re.search(rf"pairs\.jsonl:2: .*({reason})", raised(path)), raised(path)


NO_PROMPT = {
    "A05": {"chosen": "Rome. Yes", "rejected": "Rome. Yes"},
    "A06": {"chosen": "Rome", "rejected": ""},
    "A07": {"chosen": "Where? In the sky", "rejected": "Where? In the sk"},
    "A08": {"chosen": "one text", "rejected": "another"},
    "A24": {"promt": "Where?", "chosen": "one text", "rejected": "another"},
}


@pytest.mark.parametrize("fault", cases(NO_PROMPT))
def test_a_prompt_is_never_guessed_from_what_two_texts_share(tmp_path: Path, fault: str) -> None:
    """This holds also if the first row, which determines the format, is the one without a prompt."""
    message = raised(file(tmp_path, [NO_PROMPT[fault]]))
    assert re.search(r"pairs\.jsonl:1: .*needs a column 'prompt'", message), message
    assert ("if that is 'promt' here, set data.columns: {prompt: promt}" in message) == (fault == "A24")


@pytest.mark.fault("A07b")
def test_a07b_answers_of_a_dialogue_that_begin_alike_are_scored_whole(tmp_path: Path) -> None:
    """The split is at the last turn, not where the texts differ: both answers begin with the words that they share."""
    ask = "\n\nHuman: Where?\n\nAssistant:"
    data = prepared(
        file(tmp_path, [{"chosen": f"{ask} In the sky.", "rejected": f"{ask} In the sea."}]), render="text"
    )
    (pair,) = data.splits["train"].store
    assert data.decode(pair.chosen.ids).startswith(" In the sky.")
    assert data.decode(pair.rejected.ids).startswith(" In the sea.")
    assert all(pair.chosen.scored)
    assert data.decode(pair.prompt).endswith("Assistant:")


@pytest.mark.fault("A12", "A30")
@pytest.mark.parametrize("turned", [False, True])
def test_a12_every_row_has_the_format_of_the_first(tmp_path: Path, turned: bool) -> None:
    turns = {"prompt": [USER], "chosen": chat("a")[1:], "rejected": chat("b")[1:]}
    rows = [turns, GOOD] if turned else [GOOD, turns]
    assert re.search(r"pairs\.jsonl:2: (prompt|chosen): found (a list|text)", raised(file(tmp_path, rows)))
    assert prepared(file(tmp_path, rows[:1])).splits["train"].format == ("chat" if turned else "pairs")


@pytest.mark.fault("A14b")
def test_a14b_a_table_whose_text_is_no_utf_8_names_row_and_column(tmp_path: Path) -> None:
    texts = [b"In Italy.", b"a\xed\xa0\x80b"]
    ends = pyarrow.array([0, len(texts[0]), sum(map(len, texts))], pyarrow.int32()).buffers()[1]
    chosen = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, ends, pyarrow.py_buffer(b"".join(texts))])
    table = pyarrow.table({"prompt": ["Where? ", "When? "], "chosen": chosen, "rejected": ["In Spain.", "Now."]})
    parquet.write_table(table, tmp_path / "pairs.parquet")
    message = raised(tmp_path / "pairs.parquet")
    assert "pairs.parquet:2: chosen: not UTF-8: byte 0xed" in message
    assert "1 of 2 rows cannot be used" in message


@pytest.mark.fault("A17")
@pytest.mark.parametrize("truncation", ["cut", "cut_prompts"])
def test_a17_a_prompt_that_is_cut_is_counted_and_leaves_the_responses_whole(tmp_path: Path, truncation: str) -> None:
    path = file(tmp_path, [LONG_PROMPT, GOOD])
    data = prepared(path, max_length=64, truncation=truncation)
    assert data.splits["train"].notes[PROMPT_CUT] == 1
    assert f"1 pair: {PROMPT_CUT}" in said(path, max_length=64, truncation=truncation)
    (cut, whole), (_, other) = ids(data)
    assert len(cut) + len(whole) <= 64
    assert whole == other


@pytest.mark.fault("A17")
def test_a17_what_is_too_long_is_left_out_up_to_the_ceiling(tmp_path: Path) -> None:
    path = file(tmp_path, [LONG_PROMPT, GOOD])
    message = raised(path, max_length=64, truncation="drop")
    assert "1 of 2 rows cannot be used: 50.0% is more than max_dropped" in message
    assert "1 pairs are longer than max_length" in message
    split = prepared(path, max_length=64, truncation="drop", max_dropped=0.5).splits["train"]
    assert (len(split.store), dict(split.dropped)) == (1, {"longer than the limits": 1})


@pytest.mark.fault("A17b")
def test_a17b_no_row_is_left(tmp_path: Path) -> None:
    path = file(tmp_path, [LONG_PROMPT] * 4)
    message = raised(path, max_length=64, truncation="drop", max_dropped=1.0)
    assert "0 of 4 rows are left" in message
    assert "4 pairs are longer than max_length" in message


@pytest.mark.fault("A19")
def test_a19_what_is_the_same_once_it_is_cut_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, [GOOD, {**GOOD, "chosen": "word " * 60 + "a", "rejected": "word " * 60 + "b"}])
    assert re.search(r"pairs\.jsonl:2: chosen and rejected are the same \d+ tokens after", raised(path, max_length=40))


@pytest.mark.fault("A40")
def test_a40_responses_that_lost_their_end_are_counted_for_each_side_and_can_be_left_out(tmp_path: Path) -> None:
    path = file(tmp_path, [{**GOOD, "chosen": "word " * 60}, {**GOOD, "prompt": "When? ", "rejected": "word " * 60}])
    data = prepared(path, max_length=40)
    assert data.splits["train"].store.truncated.tolist() == [[True, False], [False, True]]
    lengths = data.lengths["train"].lengths
    assert (lengths.chosen_truncated, lengths.rejected_truncated) == (1, 1)
    assert data.tokenizer.eos_token_id not in ids(data)[0][1]
    left = prepared(
        file(tmp_path, [*[GOOD] * 3, {**GOOD, "chosen": "word " * 60}]),
        max_length=40,
        max_dropped=0.3,
        truncation="cut_prompts",
    )
    assert len(left.splits["train"].store) == 3


@pytest.mark.fault("A15")
def test_a15_control_tokens_spelled_in_a_text_never_become_them(tmp_path: Path) -> None:
    spelled = prepared(file(tmp_path, [GOOD])).tokenizer.all_special_tokens
    assert spelled
    text = " ".join(["In", *spelled, "Italy"])
    path = file(tmp_path, [{**GOOD, "prompt": f"Where is {spelled[-1]}? ", "chosen": text}])
    data = prepared(path)
    ((prompt, chosen),) = ids(data)
    special = set(data.tokenizer.all_special_ids)
    assert special.isdisjoint(prompt[1:])
    assert special.isdisjoint(chosen[:-1])
    assert data.decode(chosen[:-1]) == text
    assert data.splits["train"].notes[CONTROL_IN_TEXT] == 1
    assert CONTROL_IN_TEXT in said(path)


@pytest.mark.fault("A21", "A22", "A23", "A25", "A33")
def test_a21_a25_what_is_odd_but_legal_is_said_with_its_count(tmp_path: Path) -> None:
    odd = [GOOD] * 3 + [{**GOOD, "chosen": "In Spain.", "rejected": "In Italy."}]
    scored = [{**row, "score_chosen": 1.0, "score_rejected": 2.0 * (place < 2)} for place, row in enumerate(odd)]
    path = file(tmp_path, scored)
    text = said(path, validation=str(path))
    assert "2 pairs are copies of an earlier one; 4 pairs are used" in text
    assert "4 pairs also occur with chosen and rejected swapped" in text
    assert re.search(r"data\.validation .*4 pairs are in the training data as well", text)
    assert f"2 pairs: {SCORES_DISAGREE}" in text
    assert f"4 pairs: {MERGED}" in text


@pytest.mark.fault("A33")
def test_a33_a_prompt_has_its_own_ids_whatever_follows_it(tmp_path: Path) -> None:
    data = prepared(file(tmp_path, [{**GOOD, "prompt": "Where is Rome? "}, {**GOOD, "chosen": "Nowhere."}]))
    (one, _), (other, _) = ids(data)
    tokenizer = data.tokenizer
    assert one == other == [tokenizer.bos_token_id, *tokenizer("Where is Rome? ", add_special_tokens=False).input_ids]


@pytest.mark.fault("A41")
def test_a41_scores_that_are_no_numbers_are_no_scores(tmp_path: Path) -> None:
    path = file(tmp_path, [{**GOOD, "score_chosen": float("nan"), "score_rejected": 2.0}])
    assert SCORES_DISAGREE not in said(path)


def test_bad_rows_can_be_dropped_and_are_counted_up_to_a_ceiling(tmp_path: Path) -> None:
    """One bad row of 101 is below the limit of 1 %, two are above."""
    path = tmp_path / "pairs.jsonl"
    good = [line({**GOOD, "prompt": f"{number}? "}) for number in range(100)]
    path.write_bytes(b"".join(good) + line({**GOOD, "chosen": ""}))
    kept = prepared(path, on_bad_row="drop")
    assert len(kept.splits["train"].store) == 100
    path.write_bytes(b"".join(good) + 2 * line({**GOOD, "chosen": ""}))
    assert "max_dropped" in raised(path, on_bad_row="drop")


@pytest.mark.fault("A26")
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a26_a_file_without_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.jsonl").write_text(content)
    assert "empty.jsonl: no rows" in raised(tmp_path / "empty.jsonl")


@pytest.mark.fault("A13", "A29")
def test_a13_a29_whatever_the_text_its_bytes_come_back(tmp_path: Path) -> None:
    """Emoji, bidirectional marks, NUL; a byte order mark, Windows line ends, empty lines."""
    text = "a\u202eb \U0001f600 \u0000 end"
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join([line({**GOOD, "chosen": text}).strip(), b"", line(GOOD).strip(), b""])
    )
    data = prepared(path)
    assert [pair.chosen for pair in data.splits["train"].pairs] == [text, "In Italy."]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.fault("A31")
def test_a31_a_response_of_two_megabytes_is_cut_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(line({**GOOD, "chosen": "word " * 400_000}))
    began = time.monotonic()
    data = prepared(path, max_length=64)
    assert time.monotonic() - began < 60
    assert data.splits["train"].store.widths.max() <= 64
    assert data.lengths["train"].lengths.chosen_truncated == 1


@pytest.mark.fault("A32")
def test_a32_fewer_rows_than_a_step_takes_are_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(line(GOOD))
    assert prepared(path, batch_size=8).train_batches == 1
    assert "1 pair is used, and an optimizer step takes 8" in said(path, batch_size=8)
