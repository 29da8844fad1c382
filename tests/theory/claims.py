"""All claims about a world."""

from __future__ import annotations

from collections.abc import Iterator

from .claim import Claim
from .margin_claims import margin_claims
from .other_claims import likelihoods, problems
from .tabular import World


def claims(world: World) -> Iterator[Claim]:
    """Iterate over the claims about objectives, and about the problems that they solve."""
    yield from margin_claims(world)
    yield from likelihoods(world)
    yield from problems(world)
