"""Posts: short texts that state a few facts about one person, to be summarized.

Each kind of fact has one verb phrase, followed by a value of one word, so that a model of a million parameters can
learn to copy it. Posts and responses state a fact by the same sentence.
"""

import math
import random
import re
from dataclasses import dataclass

CLOSING = "\n\nTL;DR:"
"""End of every post; a space and the response follow."""

COMPLETE = "State every fact, once:"
"""Instruction before a post, and a space, that asks for the ideal summary; demonstrations teach it."""


def _values(words: str) -> tuple[str, ...]:
    return tuple(words.split())


KINDS: dict[str, tuple[str, ...]] = {
    "lives in": _values(
        "Oslo Rome Paris Madrid Berlin Vienna Dublin Lisbon Prague Athens Cairo Tokyo Lima Boston Quito Delhi"
    ),
    "plays": _values("piano violin cello flute harp drums guitar trumpet organ banjo tuba oboe viola lute bass chess"),
    "keeps": _values(
        "rabbits cats dogs goats bees hens ducks geese sheep horses parrots turtles snakes mice pigs fish"
    ),
    "speaks": _values(
        "French German Spanish Italian Greek Dutch Polish Danish Swedish Arabic Hindi Turkish "
        "Korean Finnish Latin Welsh"
    ),
    "drinks": _values("tea coffee milk cocoa cider beer wine rum gin water lemonade juice whisky sherry port mead"),
    "studies": _values(
        "physics history law music biology chemistry botany logic geology medicine theology "
        "art poetry algebra geometry dance"
    ),
    "collects": _values(
        "stamps coins shells maps clocks stones masks bottles posters knives dolls buttons "
        "feathers cards spoons medals"
    ),
    "wears": _values(
        "hats scarves gloves boots sandals ties suits jeans shorts skirts capes coats jackets sweaters rings glasses"
    ),
    "bakes": _values(
        "bread cakes pies muffins scones cookies waffles tarts rolls bagels brownies biscuits "
        "buns pretzels pastries pizza"
    ),
    "grows": _values(
        "roses tulips tomatoes carrots onions beans peas lilies apples pears plums grapes corn garlic herbs potatoes"
    ),
    "fears": _values(
        "spiders heights storms ghosts crowds thunder dentists bats sharks needles mirrors "
        "clowns wasps rats lions wolves"
    ),
    "visits": _values(
        "museums castles temples gardens markets islands lakes caves ruins zoos farms "
        "harbours beaches parks forests theatres"
    ),
}
"""Verb phrase of each kind of fact → its possible values; no value belongs to two kinds."""

NAMES: dict[str, tuple[str, ...]] = {
    "She": ("Anna", "Maria", "Clara", "Nora", "Emma", "Julia", "Laura", "Sara", "Eva", "Ruth", "Alice", "Helen"),
    "He": ("Peter", "Thomas", "David", "Simon", "Martin", "Oscar", "Paul", "Daniel", "Henry", "Jacob", "Leo", "Hugo"),
}
OPENINGS = ("Let me introduce {}.", "I met {} last week.", "My neighbour is called {}.", "This is about my friend {}.")
ASIDES = (
    "I like that.",
    "The weather was fine.",
    "We talked for a long time.",
    "My sister told me so.",
    "I was rather surprised.",
    "We had lunch together.",
)
"""Sentences of posts that state no fact."""
FILLERS = (
    "That is really all there is to say.",
    "I hope that this short summary helps.",
    "It is a nice story after all.",
    "There is not much more to add here.",
    "As you can see, this is interesting.",
    "So much for the main points above.",
)
"""Sentences of responses that state no fact."""

_FACT = re.compile(rf"\b(?:She|He) ({'|'.join(KINDS)}) (\w+)\.")


@dataclass(frozen=True)
class Fact:
    """A statement about the person of a post."""

    kind: str
    value: str

    def sentence(self, subject: str) -> str:
        """Return the sentence that states the fact.

        >>> Fact("plays", "piano").sentence("She")
        'She plays piano.'
        """
        return f"{subject} {self.kind} {self.value}."


@dataclass(frozen=True)
class Post:
    """A text to be summarized, and the facts it states."""

    text: str
    subject: str
    facts: tuple[Fact, ...]


def parse(text: str) -> list[Fact]:
    """Return all facts that a text states, in order and with repetitions; other text is ignored.

    >>> parse("I met Anna. She plays piano. She lives in Oslo. She flies.")
    [Fact(kind='plays', value='piano'), Fact(kind='lives in', value='Oslo')]
    """
    return [Fact(kind, value) for kind, value in _FACT.findall(text)]


@dataclass(frozen=True)
class WorldSettings:
    """Settings of the testbed's world; the defaults are those of the shipped files.

    Args:
        length_bonus: bonus of the raters for each word, against the true penalty ``truth.WORD_COST``.
        label_noise: probability that a verdict is reversed, whatever the two responses are.
        least_facts: smallest number of facts of a post.
        most_facts: largest number of facts of a post; their number is uniform in between. More are harder: the shipped
            policy leaves out more of them, and there is more to gain.
        prompt_knowledge: probability that a demonstration for ``COMPLETE`` and a post is the ideal response; the
            others are like those for the post alone. At 0 the quality prompt tells the fine-tuned policy nothing.
        raters: verdicts on each pair, an odd number. With several, the majority decides which response is chosen, and
            ``preference_probability`` is its share of the votes.

    Raises:
        ValueError: a setting is out of range.

    >>> WorldSettings(label_noise=0.2)
    WorldSettings(length_bonus=0.08, label_noise=0.2, least_facts=5, most_facts=8, prompt_knowledge=1.0, \
raters=1)
    """

    length_bonus: float = 0.08
    label_noise: float = 0.0
    least_facts: int = 5
    most_facts: int = 8
    prompt_knowledge: float = 1.0
    raters: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise <= 0.5:
            raise ValueError(f"label_noise is {self.label_noise}; expected 0 to 0.5, where labels are coin flips")
        if not 0 <= self.prompt_knowledge <= 1:
            raise ValueError(f"prompt_knowledge is {self.prompt_knowledge}; expected 0 to 1")
        if not 1 <= self.least_facts <= self.most_facts < len(KINDS):
            raise ValueError(
                f"least_facts is {self.least_facts} and most_facts {self.most_facts}; "
                f"expected 1 ≤ least_facts ≤ most_facts ≤ {len(KINDS) - 1}"
            )
        if self.raters < 1 or self.raters % 2 == 0:
            raise ValueError(f"raters is {self.raters}; expected an odd number, so that there is a majority")
        if not math.isfinite(self.length_bonus):
            raise ValueError(f"length_bonus is {self.length_bonus}; expected a finite number")


SHIPPED = WorldSettings()
"""Settings of the files that ship with the package."""


def sample_post(rng: random.Random, settings: WorldSettings = SHIPPED) -> Post:
    """Sample a post on a person with five to eight facts, by default, in random order and with up to two asides.

    >>> post = sample_post(random.Random(0))
    >>> sorted(fact.kind for fact in parse(post.text)) == sorted(fact.kind for fact in post.facts)
    True
    """
    subject = rng.choice(tuple(NAMES))
    name = rng.choice(NAMES[subject])
    kinds = rng.sample(tuple(KINDS), rng.randint(settings.least_facts, settings.most_facts))
    facts = tuple(Fact(kind, rng.choice(KINDS[kind])) for kind in kinds)
    body = [fact.sentence(subject) for fact in facts] + rng.sample(ASIDES, rng.randint(0, 2))
    rng.shuffle(body)
    return Post(" ".join([rng.choice(OPENINGS).format(name), *body]) + CLOSING, subject, facts)
