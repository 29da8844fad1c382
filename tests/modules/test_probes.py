"""Short sequences that models are tried on."""

from __future__ import annotations

from lit_align.data import PreferenceData
from lit_align.modules.probes import probe_sequences


def test_other_data_modules_are_not_asked_for_rows() -> None:
    assert probe_sequences(object()) == []


def test_the_first_two_sequences_have_one_prompt_with_data_and_without() -> None:
    """Checks of causality compare what a model gives for the tokens that both have."""
    data = PreferenceData(train="testbed:train", tokenizer="testbed:policy")
    without = probe_sequences(data)
    data.splits["train"] = data.prepare_split("train")
    for first, second, *others in (without, probe_sequences(data)):
        same = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        assert 0 < same < min(len(first), len(second))
        assert all(1 < len(ids) <= 32 for ids in (first, second, *others))
