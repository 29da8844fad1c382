"""Facts are unchanged by writing and parsing them."""

import random
from itertools import chain

from lit_align.testbed.world import ASIDES, CLOSING, COMPLETE, FILLERS, KINDS, NAMES, OPENINGS, parse, sample_post


def test_no_value_belongs_to_two_kinds() -> None:
    values = list(chain.from_iterable(KINDS.values()))
    assert len(values) == len(set(values)) == 12 * 16


def test_other_sentences_hold_no_value_and_no_verb() -> None:
    spoken = " ".join([*ASIDES, *FILLERS, *OPENINGS, *chain.from_iterable(NAMES.values()), COMPLETE, CLOSING])
    words = set(spoken.replace(".", " ").replace(",", " ").split())
    assert not words & set(chain.from_iterable(KINDS.values()))
    assert not words & set(chain.from_iterable(phrase.split() for phrase in KINDS))


def test_a_post_states_its_facts_and_nothing_else() -> None:
    rng = random.Random(1)
    for _ in range(200):
        post = sample_post(rng)
        told = parse(post.text)
        assert len(told) == len(set(told)) == len(post.facts)
        assert set(told) == set(post.facts)
        assert 5 <= len(told) <= 8
        assert post.text.endswith(CLOSING)
