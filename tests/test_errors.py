import pickle

import pytest

from lit_align.errors import DataError, shown


@pytest.mark.security(15)
def test_a_message_cannot_steer_a_terminal_or_leak_an_access_token() -> None:
    text = shown("\x1b]0;title\x07 hf_" + "a" * 30 + "\u202e")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "aaaa" not in text


def test_a_message_is_short_whatever_was_found() -> None:
    assert len(shown("x" * 2_000_000)) < 240


@pytest.mark.fault("D10")
def test_an_error_survives_the_way_out_of_a_worker() -> None:
    error = DataError("rows.jsonl:3", "found null; expected text", "chosen")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "rows.jsonl:3: chosen: found null; expected text"
