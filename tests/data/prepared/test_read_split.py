from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_align.data.formats.base import ParsedRow
from lit_align.data.formats.registry import FORMATS
from lit_align.data.prepared.mixture import Source
from lit_align.data.prepared.read_split import Holdout, SplitReader
from lit_align.errors import DataError
from lit_align.types import PreferencePair
from tests.data.conftest import Write
from tests.data.examples import outcome, turns


def pairs(reader: SplitReader) -> list[PreferencePair]:
    return [pair for row in reader if not isinstance(row, DataError) for pair in row.pairs]


def rows(count: int, prompts: int, name: str) -> list[dict[str, str]]:
    return [{"prompt": f"{name} {n % prompts}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(count)]


@pytest.fixture
def sources(write: Write) -> tuple[str, str]:
    """Forty pairs of ten prompts, and twenty of five others."""
    return str(write(rows(40, 10, "x"), "x.jsonl")), str(write(rows(20, 5, "y"), "y.jsonl"))


class TestMixture:
    def test_without_weights_everything_is_used_in_order_and_knows_its_source(self, sources: tuple[str, str]) -> None:
        found = pairs(SplitReader(tuple(map(Source, sources))))
        assert [pair.source for pair in found] == [0] * 40 + [1] * 20
        assert found[0].where == "x.jsonl:1"

    def test_weights_are_shares_of_pairs(self, sources: tuple[str, str]) -> None:
        x, y = sources
        reader = SplitReader((Source(x, weight=1), Source(y, weight=4)))
        found = pairs(reader)
        assert Counter(pair.source for pair in found) == {0: 5, 1: 20}
        assert len({pair.where for pair in found}) == 25
        assert found == pairs(SplitReader(reader.sources))
        assert found != pairs(SplitReader(reader.sources, seed=1))

    def test_a_pair_is_used_again_only_where_repeat_says_so(self, sources: tuple[str, str]) -> None:
        x, y = sources
        found = pairs(SplitReader((Source(x, weight=1), Source(y, weight=1, repeat=2))))
        assert Counter(pair.source for pair in found) == {0: 40, 1: 40}
        assert set(Counter(pair.where for pair in found if pair.source == 1).values()) == {2}
        assert len(pairs(SplitReader((Source(y, repeat=3),)))) == 60

    def test_each_source_has_its_own_columns_and_format(self, write: Write) -> None:
        first = write([{"question": "p", "chosen": "a", "rejected": "b"}], "first.jsonl")
        second = write([{"prompt": "p", "responses": ["a", "b"]}], "second.jsonl")
        reader = SplitReader((Source(str(first), columns={"prompt": "question"}), Source(str(second))))
        assert [pair.prompt for pair in pairs(reader)] == ["p", "p"]
        assert reader.format_names() == "pairs, ranking"

    def test_bad_rows_are_reported_once_each_and_do_not_move_the_draw(self, write: Write) -> None:
        path = write([b"{", *rows(10, 10, "x")])
        reader = SplitReader((Source(str(path), weight=1),))
        assert sum(isinstance(row, DataError) for row in reader) == 1
        assert len(pairs(reader)) == 10


class TestHoldout:
    @pytest.mark.parametrize("size", [0.3, 9])
    @pytest.mark.parametrize("weights", [(None, None), (1.0, 2.0)])
    def test_every_pair_is_on_one_side_and_a_prompt_on_one_only(
        self, sources: tuple[str, str], size: int | float, weights: tuple[float | None, float | None]
    ) -> None:
        mixed = tuple(Source(path, weight) for path, weight in zip(sources, weights, strict=True))
        train = pairs(SplitReader(mixed, holdout=Holdout(size)))
        held = pairs(SplitReader(mixed, holdout=Holdout(size), held_out=True))
        everything = pairs(SplitReader(mixed))
        assert sorted(pair.where for pair in train + held) == sorted(pair.where for pair in everything)
        assert not {pair.prompt for pair in train} & {pair.prompt for pair in held}
        assert held
        assert isinstance(size, float) or size <= len(held) < size + 4

    def test_the_order_of_the_rows_changes_nothing(self, write: Write) -> None:
        listed = rows(40, 10, "x")
        sides = []
        for seed in range(3):
            random.Random(seed).shuffle(listed)
            held = pairs(SplitReader((Source(str(write(listed))),), holdout=Holdout(12), held_out=True))
            sides.append({(pair.prompt, pair.chosen) for pair in held})
        assert sides[0] == sides[1] == sides[2]

    def test_a_repeated_pair_is_validated_on_once(self, sources: tuple[str, str]) -> None:
        held = pairs(SplitReader((Source(sources[0], repeat=3),), holdout=Holdout(4), held_out=True))
        assert len(held) == len({pair.where for pair in held}) == 4

    def test_a_share_needs_no_second_reading(self, sources: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        reader = SplitReader(tuple(map(Source, sources)), holdout=Holdout(0.5))
        monkeypatch.setattr(SplitReader, "_plan", None)
        assert 0 < len(pairs(reader)) < 60


class TestLimit:
    def test_the_first_pairs_are_used(self, sources: tuple[str, str]) -> None:
        reader = tuple(map(Source, sources))
        everything = pairs(SplitReader(reader))
        for limit in (1, 40, 43, 60, 99):
            assert pairs(SplitReader(reader, limit=limit)) == everything[:limit]

    def test_it_counts_what_a_holdout_leaves(self, sources: tuple[str, str]) -> None:
        held = Holdout(0.5)
        left = pairs(SplitReader(tuple(map(Source, sources)), holdout=held))
        assert pairs(SplitReader(tuple(map(Source, sources)), holdout=held, limit=7)) == left[:7]

    def test_the_rows_behind_are_checked_and_not_counted(self, write: Write) -> None:
        ranking = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [2, 1, 2]}
        reader = SplitReader.of(str(write([ranking, ranking, {**ranking, "scores": [1]}])))
        first, second, third = replace(reader, limit=1)
        assert isinstance(first, ParsedRow)
        assert (len(first.pairs), second) == (1, ParsedRow(()))
        assert isinstance(third, DataError)


LINES = st.binary(max_size=40) | st.sampled_from(
    [
        b'{"prompt": "p", "chosen": "c", "rejected": "r"}',
        b'{"prompt": "p", "responses": ["c", "r", "c"], "scores": [1, 2, 3]}',
        b'{"prompt": "p", "completion": "c", "label": true, "weight": 2}',
        b'p,chosen,rejected\n"a",b\n',
    ]
)
MAPS: Any = st.dictionaries(
    st.sampled_from(["prompt", "chosen", "weight", "scores"]),
    st.none() | st.sampled_from(["prompt", "p", "scores.*", "{prompt}!"]) | st.just(["chosen", "rejected"]),
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    lines=st.lists(LINES, max_size=5),
    columns=MAPS,
    layout=st.sampled_from(["auto", *FORMATS]),
    weight=st.none() | st.just(1.0),
    holdout=st.none() | st.sampled_from([0.5, 1, 3]),
)
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.tsv"])
def test_whatever_is_read_and_however_there_are_rows_or_errors_that_say_why(
    tmp_path: Path, name: str, lines: list[bytes], columns: Any, layout: Any, weight: Any, holdout: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    source = Source(str(path), weight, columns=columns, format=layout)
    reader = SplitReader((source,), holdout=None if holdout is None else Holdout(holdout))
    try:
        found = outcome(lambda: list(reader))
    except ValueError as error:
        found = DataError(name, str(error)) if str(error).startswith("data.holdout") else []
    assert found


@pytest.mark.parametrize("size", [0, -1, 1.0, 1.5, 0.0, -0.1, float("nan"), True])
def test_a_size_out_of_its_range(size: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.holdout is .*; expected a share above 0 and below 1, or a number"):
        Holdout(size)


def test_a_share_is_about_the_share_of_the_prompts() -> None:
    holdout = Holdout(0.2)
    assert holdout.below is not None
    held = sum(holdout.hash(f"prompt {number}") < holdout.below for number in range(5000))
    assert 900 < held < 1100


def test_a_number_takes_whole_prompts_until_there_are_enough() -> None:
    holdout = Holdout(3)
    hashes = np.array([holdout.hash(prompt) for prompt in "aabbccdd"], dtype=np.uint64)
    held = hashes < holdout.threshold(hashes)
    assert held.sum() == 4
    assert (held[::2] == held[1::2]).all()


def test_a_number_that_leaves_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="data.holdout 2 would hold out all of 2 pairs"):
        Holdout(2).threshold(np.array([1, 2], dtype=np.uint64))


def test_seed_and_prompt_decide_alone() -> None:
    assert Holdout(0.5, 0).hash("a") == Holdout(0.1, 0).hash("a")
    assert Holdout(0.5, 0).hash("a") != Holdout(0.5, 1).hash("a")
    asked = tuple(turns("a"))
    reordered = tuple({"content": m["content"], "role": m["role"]} for m in asked)
    assert Holdout(0.5).hash(asked) == Holdout(0.5).hash(reordered)
    assert Holdout(0.5).hash("\ud800") >= 0
