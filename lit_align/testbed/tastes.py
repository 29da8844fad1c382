"""A smaller task on the testbed's posts with preferences that can be enumerated: state one fact of the post.

The sensible responses to a post are its facts, one sentence each, so that a policy's distribution over them can be
compared with the preferences exactly. The habit of the demonstrations and the taste of the raters disagree, which
reveals a method that keeps the habit of its reference or exaggerates the taste.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lit_align.testbed.preferences import Row
from lit_align.testbed.world import CLOSING, FILLERS, KINDS, NAMES, OPENINGS, Fact, Post, parse
from lit_align.types import ResponseScore

FACTS = 3
"""Number of facts in each post."""
HABIT_STEP = 0.2
"""Nats by which demonstrations favour a kind over the next one in ``KINDS``."""
LARGEST_TASTE = 2.0
"""Score of the kind that raters like best; the kind they like least scores 0."""
NONSENSE = -4.0
"""Score of responses that are not exactly one fact of the post."""

_LIKED = (
    "fears",
    "bakes",
    "lives in",
    "wears",
    "speaks",
    "visits",
    "keeps",
    "grows",
    "plays",
    "collects",
    "drinks",
    "studies",
)
TASTE: dict[str, float] = {kind: LARGEST_TASTE * (1 - rank / (len(_LIKED) - 1)) for rank, kind in enumerate(_LIKED)}
"""Kind of fact → its score."""


def sample_taste_post(rng: random.Random) -> Post:
    """Sample a post on a person with ``FACTS`` facts in random order.

    >>> len(parse(sample_taste_post(random.Random(0)).text))
    3
    """
    subject = rng.choice(tuple(NAMES))
    facts = tuple(Fact(kind, rng.choice(KINDS[kind])) for kind in rng.sample(tuple(KINDS), FACTS))
    body = " ".join([rng.choice(OPENINGS).format(rng.choice(NAMES[subject])), *(f.sentence(subject) for f in facts)])
    return Post(body + CLOSING, subject, facts)


def choices(prompt: str) -> list[str]:
    """Return the sensible responses to a prompt: each of its facts, in the prompt's order.

    >>> choices("I met Anna. She plays piano. She keeps bees.")
    [' She plays piano.', ' She keeps bees.']
    """
    subject = "He" if " He " in prompt else "She"
    return [f" {fact.sentence(subject)}" for fact in parse(prompt)]


def taste_score(prompt: str, response: str) -> float:
    """Return the taste for a response that is exactly one fact of the prompt, and ``NONSENSE`` for any other.

    >>> taste_score("She plays piano. She fears bats.", " She fears bats.")
    2.0
    >>> taste_score("She plays piano.", " She plays flute.")
    -4.0
    """
    return TASTE[parse(response)[0].kind] if response in choices(prompt) else NONSENSE


def habit(prompt: str) -> list[float]:
    """Return the probability of each of ``choices`` in demonstrations.

    >>> [round(share, 2) for share in habit("She plays piano. She keeps bees.")]
    [0.55, 0.45]
    """
    order = list(KINDS)
    weights = [math.exp(-HABIT_STEP * order.index(fact.kind)) for fact in parse(prompt)]
    return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True)
class TasteScore(ResponseScore):
    """The task's true score as a reward; see ``taste_score``.

    >>> TasteScore()(["She plays piano. She fears bats."], [" She fears bats."])
    [2.0]
    """

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return the score of each response.

        Raises:
            ValueError: the numbers of prompts and responses differ.
        """
        return [taste_score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def sample_habits(count: int, seed: int) -> list[Row]:
    """Sample demonstrations: a fact by habit as the chosen side, and another draft as the rejected one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        post = sample_taste_post(rng)
        (chosen,) = rng.choices(choices(post.text), habit(post.text))
        rows.append({"prompt": post.text, "chosen": chosen, "rejected": _unlike(rng, post, chosen)})
    return rows


def sample_tastes(count: int, seed: int) -> list[Row]:
    """Sample pairs of different drafts; the first is preferred with probability σ(difference of scores)."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        post = sample_taste_post(rng)
        first = _draft(rng, post)
        second = _unlike(rng, post, first)
        gap = taste_score(post.text, first) - taste_score(post.text, second)
        if rng.random() >= 1 / (1 + math.exp(-gap)):
            first, second = second, first
        rows.append({"prompt": post.text, "chosen": first, "rejected": second})
    return rows


def _draft(rng: random.Random, post: Post) -> str:
    """Sample a response: usually one fact, otherwise a wrong one, two, or none."""
    fact = rng.choice(post.facts)
    match rng.choices(("fact", "wrong", "two", "filler"), (0.76, 0.12, 0.06, 0.06))[0]:
        case "fact":
            return f" {fact.sentence(post.subject)}"
        case "wrong":
            kind = rng.choice(tuple(KINDS))
            return f" {Fact(kind, rng.choice(KINDS[kind])).sentence(post.subject)}"
        case "two":
            return "".join(f" {each.sentence(post.subject)}" for each in rng.sample(post.facts, 2))
        case _:
            return f" {rng.choice(FILLERS)}"


def _unlike(rng: random.Random, post: Post, other: str) -> str:
    draft = _draft(rng, post)
    while draft == other:
        draft = _draft(rng, post)
    return draft
