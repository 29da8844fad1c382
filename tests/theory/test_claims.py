"""Training an objective on all pairs of a finite set of responses reaches the closed form of its optimum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_align.objectives import averaged_dpo, dpo
from lit_align.testbed.operators import total_variation

from .claim import Claim
from .claims import claims
from .tabular import LENGTHS, LOGITS, MASK, RESPONSES, Pairs, World, distribution, minimised, token_log_probs, trained

CLOSE = 1e-5
FAR = 1e-2
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "theory.md"


@pytest.mark.slow
@pytest.mark.parametrize("claim", list(claims(World(seed=0))), ids=lambda claim: claim.name)
def test_the_optimum_is_reached_and_wrong_ones_are_not(claim: Claim) -> None:
    own, wrong_objective, wrong_formula = claim.measured()
    assert own < CLOSE
    assert wrong_objective > FAR
    assert wrong_formula > FAR


def test_no_claim_is_made_twice() -> None:
    names = [claim.name for claim in claims(World())]
    assert len(set(names)) == len(names)


def test_the_results_have_every_claim() -> None:
    text = RESULTS.read_text("utf-8")
    for claim in claims(World()):
        row = next(line for line in text.splitlines() if line.startswith(f"| {claim.name} |"))
        assert all(words in row for words in (claim.formula, claim.wrong_name, claim.wrong_formula)), claim.name


class TestTheWorld:
    def test_responses_differ_in_length(self) -> None:
        assert sorted(set(LENGTHS.tolist())) == [1, 2, 3]
        assert len(RESPONSES) == 1 + 2 + 4

    @pytest.mark.parametrize("name", ["reference", "prompted", "prompted_reference"])
    def test_a_policy_is_a_distribution(self, name: str) -> None:
        log_probs = getattr(World(), name)
        torch.testing.assert_close(distribution(log_probs).sum(-1), torch.ones(2, dtype=torch.float64))
        assert (log_probs[:, ~MASK] == 0).all()

    def test_the_last_token_is_the_stop(self) -> None:
        longest = [len(response) == 3 for response in RESPONSES]
        assert (World().reference[:, longest, 2] == 0).all()
        assert (World().reference[:, longest, :2] < 0).all()

    def test_probabilities_of_pairs(self) -> None:
        world = World()
        pairs = Pairs(world, world.raters_see)
        probability = pairs.probability.view(2, len(RESPONSES), len(RESPONSES))
        torch.testing.assert_close(probability.sum((1, 2)), torch.ones(2, dtype=torch.float64))
        drawn = world.raters_see[0]
        torch.testing.assert_close(probability[0, 0, 1] + probability[0, 1, 0], 2 * drawn[0] * drawn[1])
        odds = (probability[0, 0, 1] / probability[0, 1, 0]).log()
        torch.testing.assert_close(odds, world.reward[0, 0] - world.reward[0, 1])
        flipped = replace(pairs, flipped=1.0).probability.view(2, len(RESPONSES), len(RESPONSES))
        torch.testing.assert_close(flipped, probability.mT)

    def test_the_records_hold_the_responses_of_each_pair(self) -> None:
        world = World()
        records = Pairs(world, world.raters_see).records(world.prompted)
        place = 1 * 49 + 3 * 7 + 5  # second prompt, chosen 3, rejected 5
        torch.testing.assert_close(records.policy[place], world.prompted[1, [3, 5]])
        torch.testing.assert_close(records.reference[place], world.reference[1, [3, 5]])
        assert records.mask[place].sum(-1).tolist() == [len(RESPONSES[3]), len(RESPONSES[5])]

    def test_the_start_does_not_matter(self) -> None:
        world = World(seed=3)
        pairs = Pairs(world, world.raters_see)
        draw = torch.Generator().manual_seed(0)
        start = torch.randn(2, *LOGITS, generator=draw, dtype=torch.float64)
        elsewhere = minimised(lambda policy: pairs.expectation(dpo(0.5), policy), world, start)
        apart = total_variation(distribution(token_log_probs(elsewhere)), trained(dpo(0.5), pairs))
        assert float(apart.max()) < CLOSE

    def test_what_raters_see_does_not_move_a_margin_objective(self) -> None:
        world = World(seed=4)
        uniform = torch.full_like(world.raters_see, 1 / len(RESPONSES))
        first, second = (trained(averaged_dpo(1.0), Pairs(world, drawn)) for drawn in (uniform, world.raters_see))
        assert float(total_variation(first, second).max()) < CLOSE
