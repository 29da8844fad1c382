"""Each prompt is in exactly one step of each pass, the same one for any number of processes."""

from __future__ import annotations

import pytest

from lit_align.modules.online.update import Minibatches


def whole(prompts: int, number: int, world: int, seed: int) -> list[list[int]]:
    """Return the prompts of each step over all processes."""
    shares = [Minibatches(prompts, number, rank, world).local(seed) for rank in range(world)]
    return [
        sorted(place * world + rank for rank, share in enumerate(shares) for place in share[step])
        for step in range(len(shares[0]))
    ]


@pytest.mark.parametrize("prompts", [1, 2, 7, 8])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_steps_are_the_same_for_any_number_of_processes(prompts: int, number: int) -> None:
    one = whole(prompts, number, 1, seed=3)
    assert sorted(place for step in one for place in step) == list(range(prompts))
    assert max(map(len, one)) - min(map(len, one)) <= 1
    for world in (2, 3):
        assert whole(prompts, number, world, seed=3) == one


def test_every_process_makes_as_many_passes() -> None:
    for rank in (0, 1):
        dealt = Minibatches(7, 3, rank, 2)
        shares = [Minibatches(7, 3, other, 2).local(5) for other in (0, 1)]
        assert dealt.most(5) == [max(len(share[step]) for share in shares) for step in range(3)]


def test_another_seed_deals_otherwise() -> None:
    assert whole(8, 2, 1, seed=0) != whole(8, 2, 1, seed=1)


def test_never_more_steps_than_prompts() -> None:
    assert Minibatches(2, 5).steps == 2
