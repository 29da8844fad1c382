from __future__ import annotations

import numpy as np
import pytest

from lit_align.evaluation.text_measures import corpus_distinct, distinct, repetition, text_metrics


def test_numbers_of_texts_are_those_counted_by_hand() -> None:
    texts = np.array([["a b a b"], ["c"]], dtype=object)
    metrics = text_metrics(texts, np.array([[5.0], [2.0]]), np.array([[1.0], [0.0]]), count=50)
    values = {name: number.value for name, number in metrics.items()}
    assert values["length/tokens"] == 3.5
    assert values["length/words"] == 2.5
    assert values["length/tokens/p10"] == pytest.approx(2 + 0.1 * 3)
    assert values["length/words/p90"] == pytest.approx(1 + 0.9 * 3)
    assert values["ended"] == 0.5
    assert values["distinct_1"] == (2 / 4 + 1) / 2
    assert values["distinct_2"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["distinct_1/corpus"] == 3 / 5
    assert values["distinct_2/corpus"] == 2 / 3
    assert values["repetition"] == 0
    assert all(number.n == 2 for number in metrics.values())
    assert metrics["ended"].low == 0
    assert metrics["ended"].high == 1


def test_repetition_counts_runs_of_three_words() -> None:
    assert repetition("to be or to be or to be or") == pytest.approx(1 - 3 / 7)
    assert distinct("", 1) == 1
    assert corpus_distinct(["a b", "A B"], 2) == 0.5
    assert corpus_distinct(["", "a"], 2) == 1
