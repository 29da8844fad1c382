"""Where training on a policy's own responses ends, compared with training on those of others, by enumeration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_align.objectives import Objective, dpo, ipo_sum, sr_dpo
from lit_align.testbed.operators import total_variation

from .tabular import Pairs, World, distribution, minimised, token_log_probs, trained, trained_on_probabilities

pytestmark = pytest.mark.slow


def own_responses(objective: Objective, world: World, rounds: int) -> Tensor:
    """Return π(y | x) after several pools: each is sampled from the minimum on the pool before it."""
    policy = distribution(world.reference)
    for _ in range(rounds):
        policy = trained(objective, Pairs(world, policy.detach()))
    return policy


def apart(one: Tensor, other: Tensor) -> float:
    return float(total_variation(one, other).max())


@pytest.mark.parametrize("objective", [dpo(0.7), sr_dpo(0.7, 0.3)], ids=["dpo", "sr_dpo"])
def test_the_optimum_of_a_logistic_contrast_does_not_depend_on_whose_responses_they_are(objective: Objective) -> None:
    world = World(seed=1)
    offline = trained(objective, Pairs(world, world.raters_see))
    assert apart(own_responses(objective, world, rounds=2), offline) < 1e-5
    assert apart(offline, distribution(world.reference)) > 1e-2


def test_labels_by_probability_have_the_same_optimum() -> None:
    """As ``model.labels.probability_scale`` gives them with a score in nats."""
    world = World(seed=1)
    own = Pairs(world, distribution(world.reference))
    assert apart(trained_on_probabilities(dpo(0.7), own), trained(dpo(0.7), own)) < 1e-5


def test_ipo_ends_where_it_wins_against_itself() -> None:
    """π ∝ π_ref exp(P/β) with P against π itself; against the responses of others it ends elsewhere."""
    world, beta = World(seed=1), 0.5
    policy = own_responses(ipo_sum(beta), world, rounds=9)
    wins = torch.sigmoid(world.reward[:, :, None] - world.reward[:, None])

    def closed_form(opponents: Tensor) -> Tensor:
        rate = (wins * opponents[:, None]).sum(-1)
        return (distribution(world.reference).log() + rate / beta).softmax(-1)

    assert apart(policy, closed_form(policy)) < 1e-5
    assert apart(policy, closed_form(world.raters_see)) > 1e-2


def test_sure_labels_of_a_deterministic_score_have_no_finite_optimum() -> None:
    """All probability goes to the best response, at any β."""
    world = World(seed=1)
    pairs = Pairs(world, world.raters_see)
    sure = (world.reward[:, :, None] > world.reward[:, None]).flatten().double()

    def loss(policy: Tensor) -> Tensor:
        return (pairs.drawn * sure * dpo(1.0)(pairs.records(policy)).loss).sum()

    reached = distribution(token_log_probs(minimised(loss, world)))
    best = reached.gather(1, world.reward.argmax(1, keepdim=True))
    assert float(best.min()) > 0.99
