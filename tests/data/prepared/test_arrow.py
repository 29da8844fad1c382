from __future__ import annotations

import datetime
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.prepared.arrow import SCHEMA, records, values_of
from lit_align.data.prepared.store import PairStore, PairTexts
from lit_align.types import PreferencePair, TokenizedPair, TokenizedResponse

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
IDS = TokenizedPair([1], TokenizedResponse([2], [True]), TokenizedResponse([3], [True]))
TEXT = st.text(max_size=8)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3).map(tuple)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NUMBER = st.floats(0, 10)
PAIRS = st.builds(
    PreferencePair,
    prompt=TEXT | MESSAGES,
    chosen=st.none() | TEXT | MESSAGES,
    rejected=st.none() | TEXT | MESSAGES,
    where=TEXT,
    extra=st.dictionaries(TEXT, JSON, max_size=3),
    tools=st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2).map(tuple),
    weight=NUMBER,
    margin=st.none() | NUMBER,
    preference_probability=st.none() | st.floats(0, 1),
    scores=st.none() | st.tuples(NUMBER, NUMBER),
    source=st.integers(0, 1000),
)


def table(*chunks: list[PreferencePair]) -> Any:
    return pa.Table.from_batches([records(pairs, [IDS] * len(pairs)) for pairs in chunks], SCHEMA)


@settings(deadline=None)
@given(first=st.lists(PAIRS, max_size=3), second=st.lists(PAIRS, max_size=3))
def test_text_read_lazily_is_the_text_that_went_in(first: list[PreferencePair], second: list[PreferencePair]) -> None:
    whole = table(first, second)
    texts = PairTexts(whole, values_of(whole))
    assert list(texts) == first + second
    assert texts[-2:] == (first + second)[-2:]


def test_a_score_of_one_side_alone_is_kept() -> None:
    whole = table([PreferencePair("p", "c", "r", scores=(2.0, float("nan")))])
    scores = PairTexts(whole, values_of(whole))[0].scores
    assert scores is not None
    assert scores[0] == 2.0
    assert scores[1] != scores[1]


def test_what_json_has_no_word_for_comes_back_as_its_text() -> None:
    whole = table([PreferencePair("p", "c", "r", extra={"day": datetime.date(2024, 5, 6), "raw": b"x"})])
    assert PairTexts(whole, values_of(whole))[0].extra == {"day": "2024-05-06", "raw": "b'x'"}


def test_which_tokens_are_scored_is_kept_where_not_all_are() -> None:
    some = TokenizedResponse([2, 8, 9], [False, True, False])
    pair = TokenizedPair([1], some, TokenizedResponse([3], [True]))
    store = PairStore.of([pair, IDS])
    assert store[0] == pair
    assert store.lengths.tolist() == [[1, 1], [1, 1]]
    assert store.widths.tolist() == [4, 2]
    assert store.stop_tokens == {8, 3, 2}
    assert store.table.column("chosen_scored").null_count == 1
    all_scored = TokenizedPair([1], TokenizedResponse(some.ids, [True] * 3), pair.rejected)
    assert PairStore.of([all_scored, IDS]).fingerprint != store.fingerprint


@pytest.mark.long
def test_no_process_needs_pandas_to_prepare() -> None:
    """Importing pandas takes half a second and fifty megabytes in each process."""
    program = (
        "import sys; from tests.data.prepared.test_arrow import table, IDS;"
        "from lit_align.data.prepared.store import PairStore, PairTexts;"
        "from lit_align.types import PreferencePair; from lit_align.data.prepared.arrow import values_of;"
        "whole = table([PreferencePair('p', 'c', 'r')]); store = PairStore(whole); store[0]; store.widths;"
        "store.fingerprint; PairTexts(whole, values_of(whole))[0]; print('pandas' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
