"""A small summarization task whose true reward is known: a laptop aligns its policy in minutes.

Posts state facts about a person (``world``), a pure function scores a response (``truth``), and simulated raters, who
have a bias towards length, label pairs of drafts (``preferences``). The package ships the pairs, a tokenizer, and a
tiny policy fine-tuned on demonstrations; ``tools/testbed`` reproduces them from a seed.
"""

from importlib.resources import files
from pathlib import Path

__all__ = ["PARTS", "path", "resolve"]

PARTS = {"policy": "policy", "train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
"""Name in a configuration, as ``testbed:<name>`` → file or folder."""

_PREFIX = "testbed:"


def path(name: str) -> Path:
    """Return the path of a file or folder of the testbed, such as ``policy`` or ``train.jsonl``.

    >>> path("train.jsonl").name
    'train.jsonl'
    """
    return Path(str(files(__name__))) / "data" / name


def resolve(name: str) -> Path | None:
    """Return the path of ``testbed:<name>``; None for any other text.

    Raises:
        ValueError: the testbed has nothing of that name.

    >>> resolve("testbed:policy").name
    'policy'
    >>> resolve("EleutherAI/pythia-410m") is None
    True
    """
    if not name.startswith(_PREFIX):
        return None
    key = name.removeprefix(_PREFIX)
    if key not in PARTS:
        raise ValueError(f"the testbed has no {key!r}; it has {', '.join(_PREFIX + known for known in PARTS)}")
    return path(PARTS[key])
