from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.prepared.mixture import Source, as_sources, copies, quotas


class TestSources:
    @pytest.mark.parametrize(
        ("given", "paths"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ([Source("a"), "b"], ["a", "b"])]
    )
    def test_one_or_several(self, given: Any, paths: list[str]) -> None:
        assert [source.path for source in as_sources(given)] == paths

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([Source("a", weight=1), "b"], "sources without a weight beside sources with one: b; set all, or none"),
            ([Source("a", weight=0)], "weight of a is 0; expected more than 0"),
            ([Source("a", weight=-1)], "weight of a is -1; expected 0 or more"),
            ([Source("a", weight=float("nan"))], "weight of a is nan"),
            ([Source("a", repeat=0)], "repeat of a is 0; expected 1 or more"),
            ([Source("a", columns={"promt": "x"})], "'promt' is not a column of any format; did you mean 'prompt'"),
            ("[{pth: a}]", "is no list of sources; expected paths, or objects with path, weight, repeat"),
        ],
    )
    def test_what_is_not_in_order(self, given: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            as_sources(given)

    def test_what_a_source_says_itself_counts(self) -> None:
        own = Source("a", columns={}, format="hh")
        assert own.with_defaults({"prompt": "q"}, "pairs") == own
        assert Source("a").with_defaults({"prompt": "q"}, "pairs") == Source(
            "a", columns={"prompt": "q"}, format="pairs"
        )


class TestQuotas:
    def test_shares_are_of_pairs_and_the_scarcest_source_is_used_up(self) -> None:
        sources = [Source("a", weight=2), Source("b", weight=1), Source("c", weight=1)]
        assert quotas(sources, [1000, 100, 300]) == [200, 100, 100]

    def test_a_source_may_be_repeated_if_it_says_so(self) -> None:
        sources = [Source("a", weight=1), Source("b", weight=1, repeat=3)]
        assert quotas(sources, [1000, 100]) == [300, 300]

    def test_a_weight_that_leaves_nothing_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="weight 0.001 of b leaves none of its pairs; raise it"):
            quotas([Source("a", weight=1), Source("b", weight=0.001)], [10, 10])

    @given(rows=st.lists(st.tuples(st.floats(1, 10), st.integers(1, 4), st.integers(50, 500)), min_size=1, max_size=4))
    def test_never_more_than_there_are_and_the_shares_are_the_weights(self, rows: list[Any]) -> None:
        sources = [Source(str(at), weight=w, repeat=r) for at, (w, r, _) in enumerate(rows)]
        found = quotas(sources, [count for _, _, count in rows])
        assert all(quota <= repeat * count for quota, (_, repeat, count) in zip(found, rows, strict=True))
        assert any(quota == repeat * count for quota, (_, repeat, count) in zip(found, rows, strict=True))
        total = min(repeat * count / weight for weight, repeat, count in rows)
        assert all(abs(quota - total * weight) <= 1 for quota, (weight, _, _) in zip(found, rows, strict=True))


class TestCopies:
    @given(quota=st.integers(0, 60), count=st.integers(1, 20), seed=st.integers(0, 5))
    def test_as_many_as_asked_and_as_even_as_possible(self, quota: int, count: int, seed: int) -> None:
        times = copies(quota, count, seed)
        assert times.sum() == quota
        assert times.max() - times.min() <= 1
        assert (times == copies(quota, count, seed)).all()

    def test_another_seed_draws_others(self) -> None:
        assert (copies(50, 100, 0) != copies(50, 100, 1)).any()

    def test_no_pairs(self) -> None:
        assert copies(0, 0, 0).tolist() == []
