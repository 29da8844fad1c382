"""A preference: two drafts on one post, in the order of a rater who likes a true summary and, a little, a long one.

Raters follow Bradley-Terry on the true score plus ``LENGTH_BONUS`` per word. The bonus is a little larger than the
cost of a word, so raters find filler slightly better where the true score finds it worse: the verbosity bias of human
labels.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_align.testbed.truth import true_score
from lit_align.testbed.world import COMPLETE, FILLERS, KINDS, Fact, Post, draw_post

LENGTH_BONUS = 0.08
"""What raters add for each word, against a true cost of ``truth.WORD_COST``."""

Row = dict[str, str]
"""One line of a data file: ``prompt``, ``chosen``, ``rejected``."""


@dataclass(frozen=True)
class Writer:
    """Writes a response to a post from memory, in random order.

    Args:
        least: smallest share of the post's facts that is told; the number is uniform from there to all of them.
        wrong: chance that a fact is replaced by one the post does not state.
        repeated: chance that a told fact is told once more.
        filler: largest number of sentences without a fact; the number is uniform from none to this.
    """

    least: float = 0.0
    wrong: float = 0.0
    repeated: float = 0.0
    filler: int = 0

    def __call__(self, rng: random.Random, post: Post) -> str:
        """One response, which begins with a space.

        >>> post = Post("...", "She", (Fact("plays", "piano"),))
        >>> Writer()(random.Random(0), post)
        ' She plays piano.'
        """
        facts = rng.sample(post.facts, rng.randint(max(1, math.ceil(self.least * len(post.facts))), len(post.facts)))
        told = [_replace(rng, post, fact) if rng.random() < self.wrong else fact for fact in facts]
        told += [fact for fact in told if rng.random() < self.repeated]
        sentences = [fact.sentence(post.subject) for fact in told]
        sentences += rng.sample(FILLERS, rng.randint(0, self.filler))
        rng.shuffle(sentences)
        return " " + " ".join(sentences)


DRAFT = Writer(wrong=0.15, repeated=0.05, filler=3)
"""Writes what raters compare."""
DEMONSTRATION = Writer(filler=2)
"""Writes what the policy first learns from: true and without repeats, but with gaps and filler."""
IDEAL = Writer(least=1.0)
"""Every fact once and nothing else: the best possible true score."""


@dataclass(frozen=True)
class LabelReport:
    """What a set of labelled pairs teaches, truly and by accident.

    Args:
        accuracy: share of pairs whose chosen side has the higher true score.
        contradicted: share of pairs whose rejected side has the higher true score.
        longer_wins: share of wins of the longer side, among pairs of unequal length.
        longer_wins_contradicted: the same among contradicted pairs; above a half is a taste for length, not noise.
        chosen_words: mean words of the chosen side.
        rejected_words: mean words of the rejected side.
    """

    accuracy: float
    contradicted: float
    longer_wins: float
    longer_wins_contradicted: float
    chosen_words: float
    rejected_words: float


def rated_score(prompt: str, response: str) -> float:
    """What raters see in a response: the true score plus ``LENGTH_BONUS`` per word.

    >>> round(rated_score("She plays piano.", " She plays piano."), 2)  # 1 - 3 * 0.05 + 3 * 0.08
    1.09
    """
    return true_score(prompt, response) + LENGTH_BONUS * len(response.split())


def prefers_first(rng: random.Random, prompt: str, first: str, second: str) -> bool:
    """A rater's verdict: the first response wins with chance sigma(rated(first) - rated(second))."""
    gap = rated_score(prompt, first) - rated_score(prompt, second)
    return rng.random() < 1 / (1 + math.exp(-gap))


def draw_pair(rng: random.Random, post: Post) -> Row:
    """Two different drafts on a post, as a rater orders them."""
    first = DRAFT(rng, post)
    second = _draft_unlike(rng, post, first)
    if not prefers_first(rng, post.text, first, second):
        first, second = second, first
    return {"prompt": post.text, "chosen": first, "rejected": second}


def draw_demonstration(rng: random.Random, post: Post) -> Row:
    """A demonstration against a draft; one in five is the ideal response to the post behind ``COMPLETE``."""
    ideal = rng.random() < 0.2
    writer, prompt = (IDEAL, f"{COMPLETE} {post.text}") if ideal else (DEMONSTRATION, post.text)
    chosen = writer(rng, post)
    return {"prompt": prompt, "chosen": chosen, "rejected": _draft_unlike(rng, post, chosen)}


def report_labels(pairs: Sequence[Row]) -> LabelReport:
    """How far the labels follow the true score, and how far they follow length.

    >>> row = {"prompt": "She plays piano.", "chosen": " Well, well.", "rejected": " She plays piano."}
    >>> report_labels([row])
    LabelReport(accuracy=0.0, contradicted=1.0, longer_wins=0.0, longer_wins_contradicted=0.0, \
chosen_words=2.0, rejected_words=3.0)
    """
    gaps = [true_score(row["prompt"], row["chosen"]) - true_score(row["prompt"], row["rejected"]) for row in pairs]
    words = [(len(row["chosen"].split()), len(row["rejected"].split())) for row in pairs]
    longer = [chosen - rejected for chosen, rejected in words]
    return LabelReport(
        accuracy=_share(gap > 0 for gap in gaps),
        contradicted=_share(gap < 0 for gap in gaps),
        longer_wins=_share(more > 0 for more in longer if more),
        longer_wins_contradicted=_share(more > 0 for more, gap in zip(longer, gaps, strict=True) if more and gap < 0),
        chosen_words=sum(chosen for chosen, _ in words) / len(pairs),
        rejected_words=sum(rejected for _, rejected in words) / len(pairs),
    )


def draw_posts(rng: random.Random, count: int, seen: set[str]) -> Iterable[Post]:
    """Posts whose text is not in ``seen``, which they join."""
    for _ in range(count):
        post = draw_post(rng)
        while post.text in seen:
            post = draw_post(rng)
        seen.add(post.text)
        yield post


def _draft_unlike(rng: random.Random, post: Post, other: str) -> str:
    """A draft that is not the other response."""
    draft = DRAFT(rng, post)
    while draft == other:
        draft = DRAFT(rng, post)
    return draft


def _share(values: Iterable[bool]) -> float:
    """Share of true values; zero of none."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))


def _replace(rng: random.Random, post: Post, fact: Fact) -> Fact:
    """A wrong fact: another value of the same kind or, half of the time, a kind the post says nothing about."""
    told = {known.kind for known in post.facts}
    kind = fact.kind if rng.random() < 0.5 else rng.choice([kind for kind in KINDS if kind not in told])
    return Fact(kind, rng.choice([value for value in KINDS[kind] if value != fact.value]))
