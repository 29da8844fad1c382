"""Preference pairs: two drafts on a post, ordered by simulated raters; and the shipped files, sampled from one seed.

Raters follow Bradley-Terry on the true score plus a bonus per word (``WorldSettings.length_bonus``). The bonus is a
little larger than the penalty of a word, so raters slightly prefer filler, which the true score penalizes, as human
labels do.
"""

import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_align.testbed.truth import true_score
from lit_align.testbed.world import COMPLETE, FILLERS, KINDS, SHIPPED, Fact, Post, WorldSettings, sample_post

Row = dict[str, Any]
"""Line of a data file: ``prompt``, ``chosen``, ``rejected``, and with several raters ``preference_probability``."""


@dataclass(frozen=True)
class Writer:
    """Sample a response to a post, in random order.

    Args:
        least: smallest share of the post's facts that are stated; their number is uniform up to all of them.
        wrong: probability that a fact is replaced by one that the post does not state.
        repeated: probability that a fact is stated twice.
        filler: largest number of sentences without a fact; their number is uniform from 0.
    """

    least: float = 0.0
    wrong: float = 0.0
    repeated: float = 0.0
    filler: int = 0

    def __call__(self, rng: random.Random, post: Post) -> str:
        """Return a response, which begins with a space.

        >>> post = Post("...", "She", (Fact("plays", "piano"),))
        >>> Writer()(random.Random(0), post)
        ' She plays piano.'
        """
        facts = rng.sample(post.facts, rng.randint(max(1, math.ceil(self.least * len(post.facts))), len(post.facts)))
        stated = [_replace(rng, post, fact) if rng.random() < self.wrong else fact for fact in facts]
        stated += [fact for fact in stated if rng.random() < self.repeated]
        sentences = [fact.sentence(post.subject) for fact in stated]
        sentences += rng.sample(FILLERS, rng.randint(0, self.filler))
        rng.shuffle(sentences)
        return " " + " ".join(sentences)


DRAFT = Writer(wrong=0.15, repeated=0.05, filler=3)
"""Writer of the responses that raters compare."""
DEMONSTRATION = Writer(filler=2)
"""Writer of demonstrations: true and without repetitions, but with gaps and filler."""
IDEAL = Writer(least=1.0)
"""Writer of ideal responses, every fact once and nothing else, which have the best true score."""
ASKED = 0.2
"""Share of demonstrations whose post follows ``COMPLETE``."""


@dataclass(frozen=True)
class LabelReport:
    """Statistics of how labels follow the true score and length.

    Args:
        accuracy: share of pairs whose chosen side has the higher true score.
        contradicted: share of pairs whose rejected side has the higher true score.
        longer_wins: share of wins of the longer side, among pairs of unequal length.
        longer_wins_contradicted: the same among contradicted pairs; above 0.5 it is a bias towards length, not noise.
        chosen_words: mean words of the chosen side.
        rejected_words: mean words of the rejected side.
    """

    accuracy: float
    contradicted: float
    longer_wins: float
    longer_wins_contradicted: float
    chosen_words: float
    rejected_words: float


def rated_score(prompt: str, response: str, settings: WorldSettings = SHIPPED) -> float:
    """Return the score that raters perceive: the true score plus the length bonus per word.

    >>> round(rated_score("She plays piano.", " She plays piano."), 2)  # 1 - 3 * 0.05 + 3 * 0.08
    1.09
    """
    return true_score(prompt, response) + settings.length_bonus * len(response.split())


def prefers_first(rng: random.Random, prompt: str, first: str, second: str, settings: WorldSettings = SHIPPED) -> bool:
    """Sample a rater's verdict: the first response wins with probability σ(rated(first) - rated(second)).

    With label noise ε the verdict is reversed with probability ε.
    """
    gap = rated_score(prompt, first, settings) - rated_score(prompt, second, settings)
    wins = 1 / (1 + math.exp(-gap))
    return rng.random() < wins * (1 - settings.label_noise) + (1 - wins) * settings.label_noise


def sample_pair(rng: random.Random, post: Post, settings: WorldSettings = SHIPPED) -> Row:
    """Sample two different drafts on a post, ordered by a rater or by most of several."""
    first = DRAFT(rng, post)
    second = _draft_unlike(rng, post, first)
    share = (
        sum(prefers_first(rng, post.text, first, second, settings) for _ in range(settings.raters)) / settings.raters
    )
    if share < 0.5:
        first, second = second, first
    votes = {"preference_probability": max(share, 1 - share)} if settings.raters > 1 else {}
    return {"prompt": post.text, "chosen": first, "rejected": second} | votes


def sample_demonstration(rng: random.Random, post: Post, settings: WorldSettings = SHIPPED) -> Row:
    """Sample a demonstration and a draft; one post in five follows ``COMPLETE``, and has the ideal response.

    With a prompt knowledge below 1 only that share of their responses is ideal.
    """
    place = rng.random() / ASKED
    writer = IDEAL if place < settings.prompt_knowledge else DEMONSTRATION
    prompt = f"{COMPLETE} {post.text}" if place < 1 else post.text
    chosen = writer(rng, post)
    return {"prompt": prompt, "chosen": chosen, "rejected": _draft_unlike(rng, post, chosen)}


def report_labels(pairs: Sequence[Row]) -> LabelReport:
    """Measure how far labels follow the true score and length.

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


def sample_posts(rng: random.Random, count: int, seen: set[str], settings: WorldSettings = SHIPPED) -> Iterable[Post]:
    """Sample posts whose text is not in ``seen``, and add them to it."""
    for _ in range(count):
        post = sample_post(rng, settings)
        while post.text in seen:
            post = sample_post(rng, settings)
        seen.add(post.text)
        yield post


def _draft_unlike(rng: random.Random, post: Post, other: str) -> str:
    """Sample a draft that differs from the other response."""
    draft = DRAFT(rng, post)
    while draft == other:
        draft = DRAFT(rng, post)
    return draft


def _share(values: Iterable[bool]) -> float:
    """Return the share of true values; 0 of no values."""
    listed = list(values)
    return sum(listed) / max(1, len(listed))


def _replace(rng: random.Random, post: Post, fact: Fact) -> Fact:
    """Sample a wrong fact: another value of the kind or, half of the time, a kind that the post does not have."""
    stated = {known.kind for known in post.facts}
    kind = fact.kind if rng.random() < 0.5 else rng.choice([kind for kind in KINDS if kind not in stated])
    return Fact(kind, rng.choice([value for value in KINDS[kind] if value != fact.value]))


SEED = 20240531
"""Seed of the shipped files."""
SIZES = {"train": 2400, "validation": 300, "test": 300}
"""Pairs in each shipped split."""


def sample_splits(seed: int = SEED, settings: WorldSettings = SHIPPED) -> dict[str, list[Row]]:
    """Sample the preference pairs of every split; no two splits share a post.

    >>> {name: len(rows) for name, rows in sample_splits().items()}
    {'train': 2400, 'validation': 300, 'test': 300}
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    return {
        name: [sample_pair(rng, post, settings) for post in sample_posts(rng, size, seen, settings)]
        for name, size in SIZES.items()
    }


def sample_demonstrations(count: int, seed: int = SEED, settings: WorldSettings = SHIPPED) -> list[Row]:
    """Sample rows whose chosen side is a demonstration, on posts of none of the splits of ``sample_splits``.

    >>> len(sample_demonstrations(3))
    3
    """
    seen = {row["prompt"] for rows in sample_splits(seed, settings).values() for row in rows}
    rng = random.Random(seed + 1)
    return [sample_demonstration(rng, post, settings) for post in sample_posts(rng, count, seen, settings)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, with the same bytes on every system."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8"))


def read_rows(path: Path) -> list[Row]:
    """Read rows that ``write_rows`` has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
