from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lit_align.data.formats.registry import FormatName
from lit_align.data.prepared.prepare import (
    ONLY_BLANKS_DIFFER,
    SCORES_DISAGREE,
    Split,
    _only_blanks_differ,
    prepare_split,
)
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.text.tokenize import Tokenize, Tokenized
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut, Drop, Truncation
from lit_align.errors import DataError
from lit_align.types import PreferencePair
from tests.data.conftest import Write
from tests.data.examples import pair_row, turns

BLANK = {**pair_row(0), "chosen": " "}


@pytest.fixture
def read(plain: PreTrainedTokenizerFast) -> Any:
    """Prepare a file, with the strictest settings by default."""

    def run(
        path: Any, bad_rows: BadRows = BadRows(), layout: FormatName = "auto", truncation: Truncation = Cut(200)
    ) -> Split:
        return prepare_split(SplitReader.of(str(path), layout), Tokenize(Encoder(plain), truncation), bad_rows)

    return run


def test_text_and_ids_stand_at_the_same_positions(read: Any, write: Write, plain: PreTrainedTokenizerFast) -> None:
    path = write([pair_row(0), BLANK, pair_row(2), pair_row(3, length=70), pair_row(4)])
    split = read(path, BadRows("drop", 1.0), truncation=Drop(60))
    assert [pair.where for pair in split.pairs] == ["rows.jsonl:1", "rows.jsonl:3", "rows.jsonl:5"]
    for pair, ids in zip(split.pairs, split.store, strict=True):
        assert plain.decode(ids.prompt) == pair.prompt
        assert plain.decode(ids.chosen.ids) == f"{pair.chosen}</s>"
    assert split.read == 5
    assert split.dropped == {"chosen: found only blanks": 1, "longer than the limits": 1}


@pytest.mark.fault("A25", "A41")
def test_scores_that_contradict_the_labels_are_counted(read: Any, write: Write) -> None:
    scores = [(1, 2), (2, 1.5), (None, 3), (float("nan"), 1), (1, 1)]
    path = write([{**pair_row(n), "score_chosen": a, "score_rejected": b} for n, (a, b) in enumerate(scores)])
    assert read(path).notes == {SCORES_DISAGREE: 1}


def test_pairs_that_differ_in_blanks_at_their_ends_alone_are_counted(read: Any, write: Write) -> None:
    texts = [("yes", "yes \n"), ("yes", "no "), (" yes", "yes"), ("yes\t", "yes")]
    rows = [{"prompt": "Is it?\n", "chosen": chosen, "rejected": rejected} for chosen, rejected in texts]
    assert read(write(rows)).notes == {ONLY_BLANKS_DIFFER: 2}


def test_messages_that_differ_in_blanks_alone_are_the_same_but_for_them() -> None:
    one, other = (({"role": "assistant", "content": text},) for text in ("yes", "yes\n"))
    assert _only_blanks_differ(PreferencePair((), one, other))
    assert not _only_blanks_differ(PreferencePair((), one, ({"role": "assistant", "content": "no"},)))
    assert not _only_blanks_differ(PreferencePair("", None, None))


@dataclass(frozen=True)
class Failing(Tokenize):
    """Fails on one row, as a chat template may."""

    def __call__(self, pairs: Sequence[PreferencePair]) -> Tokenized:
        if any(pair.where == "rows.jsonl:3" for pair in pairs):
            raise RecursionError("too deep")
        return super().__call__(pairs)


def test_a_row_at_which_tokenizing_fails_is_named(write: Write, plain: PreTrainedTokenizerFast) -> None:
    path = write([pair_row(number) for number in range(5)])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"rows.jsonl:3: tokenizing it raised RecursionError: 'too deep'"):
            prepare_split(SplitReader.of(str(path)), Failing(Encoder(plain), Cut(200)), BadRows(), workers=workers)


def test_a_bad_row_stops_with_the_first_ten_of_them_and_their_number(read: Any, write: Write) -> None:
    path = write([pair_row(0), *[BLANK] * 14, pair_row(1)])
    with pytest.raises(DataError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 14 of 16 rows cannot be used"
    assert lines[1] == "  rows.jsonl:2: chosen: found only blanks (' '); expected text"
    assert lines[10].startswith("  rows.jsonl:11: ")
    assert lines[11] == "  … and 4 more"
    assert "set data.on_bad_row to drop" in lines[12]


def test_lines_that_hold_no_row_count_like_rows_that_cannot_be_used(read: Any, write: Write) -> None:
    path = write([b"{", pair_row(0), b"\xff", pair_row(1)])
    split = read(path, BadRows("drop", 0.5))
    assert len(split.pairs) == 2
    assert split.read == 4
    assert sum(split.dropped.values()) == 2
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not valid JSON"):
        read(path)


def test_more_than_the_accepted_share_is_an_error_at_the_share_it_is_not(read: Any, write: Write) -> None:
    path = write([BLANK, *map(pair_row, range(9))])
    assert len(read(path, BadRows("drop", 0.1)).pairs) == 9
    with pytest.raises(DataError, match=r"1 of 10 rows cannot be used: 10\.0% is more than max_dropped \(9\.0%\)"):
        read(path, BadRows("drop", 0.09))


def test_pairs_that_truncation_drops_are_no_bad_rows_but_count_in_the_share(read: Any, write: Write) -> None:
    path = write([*map(pair_row, range(3)), pair_row(3, length=70)])
    split = read(path, BadRows("error", 0.25), truncation=Drop(60))
    assert split.dropped == {"longer than the limits": 1}
    with pytest.raises(DataError, match="1 pairs are longer than max_length"):
        read(path, BadRows("error", 0.2), truncation=Drop(60))


def test_the_first_pairs_that_are_too_long_are_named(read: Any, write: Write) -> None:
    path = write([pair_row(number, length=70 if number % 2 else 5) for number in range(9)])
    with pytest.raises(DataError, match=r"4 pairs are longer than .* \(rows.jsonl:2, rows.jsonl:4, rows.jsonl:6, …\)"):
        read(path, truncation=Drop(60))


def test_no_rows_left(read: Any, write: Write) -> None:
    path = write([BLANK, BLANK])
    with pytest.raises(DataError, match=r"0 of 2 rows are left\n  rows\.jsonl:1: chosen"):
        read(path, BadRows("drop", 1.0))
    with pytest.raises(DataError, match=r"0 of 1 rows are left\n  1 pairs are longer than max_length"):
        read(write([pair_row(1)]), BadRows("drop", 1.0), truncation=Drop(4))


def test_the_first_row_decides_on_the_format_of_the_file(read: Any, write: Write) -> None:
    chat = {"chosen": turns("a", "b"), "rejected": turns("a", "c")}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: chosen: found a list"):
        read(write([pair_row(0), {**chat, "prompt": "a"}]))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: column 'prompt' is missing"):
        read(write([pair_row(0), chat]))


def test_a_given_format_is_not_questioned(read: Any, write: Write) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: chosen: found text"):
        read(write([pair_row(0)]), layout="chat")


def test_a_first_line_that_is_broken_does_not_decide(read: Any, write: Write) -> None:
    split = read(write([b"{", pair_row(0)]), BadRows("drop", 1.0))
    assert split.format == "pairs"


def test_lines_that_are_all_broken(read: Any, write: Write) -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        read(write([b"{", b"}"]))


def test_plain_texts_without_a_prompt_are_told_what_to_do(read: Any, write: Write) -> None:
    path = write([{"chosen": "In the skiff.", "rejected": "In the sea."}])
    with pytest.raises(DataError, match="text without turns needs a column 'prompt'"):
        read(path)


def test_a_prompt_under_another_name_is_told_how_to_say_so(read: Any, write: Write) -> None:
    path = write([{"question": "Where is Jim?", "chosen": "In the skiff.", "rejected": "In the sea."}])
    with pytest.raises(DataError, match=r"if that is 'question' here, set data.columns: {prompt: question}"):
        read(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30) | st.just(b'{"prompt": "p", "chosen": "c", "rejected": "r"}'), max_size=6)
)
def test_whatever_the_lines_there_is_a_split_or_a_data_error(read: Any, write: Write, lines: list[bytes]) -> None:
    path = write(lines)
    try:
        outcome = read(path, BadRows("drop", 1.0))
    except DataError as error:
        outcome = error
    if isinstance(outcome, DataError):
        assert outcome.where == str(path)
    else:
        assert len(outcome.pairs) == len(outcome.store) > 0
