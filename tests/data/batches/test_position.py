from __future__ import annotations

import pytest

from lit_align.data.batches.loader import check_same_data

SAVED = {"fingerprint": "a", "template": "t", "seed": 0, "tokens": 64, "processes": 1, "accumulate": 1}


def test_the_same_data_is_the_same() -> None:
    check_same_data(SAVED, SAVED, inside_epoch=True)


def test_other_pairs_never_are_and_everything_that_differs_is_named() -> None:
    with pytest.raises(ValueError, match="fingerprint .* was a and is b; the hash of .* template was t and is u"):
        check_same_data(SAVED, {**SAVED, "fingerprint": "b", "template": "u"}, inside_epoch=False)


def test_another_template_that_changes_no_pair_is_no_other_data() -> None:
    check_same_data(SAVED, {**SAVED, "template": "u"}, inside_epoch=True)


@pytest.mark.parametrize(("key", "words"), [("tokens", r"data\.tokens_per_batch"), ("processes", "processes")])
def test_other_batches_matter_inside_an_epoch(key: str, words: str) -> None:
    check_same_data(SAVED, {**SAVED, key: 9}, inside_epoch=False)
    with pytest.raises(ValueError, match=f"{words} was .* and is 9"):
        check_same_data(SAVED, {**SAVED, key: 9}, inside_epoch=True)


def test_a_budget_of_another_kind_is_named_too() -> None:
    pairs = {"fingerprint": "a", "template": "t", "seed": 0, "global_batch": 8, "step": 8}
    with pytest.raises(ValueError, match=r"tokens_per_batch was 64 and is None"):
        check_same_data(SAVED, pairs, inside_epoch=True)
