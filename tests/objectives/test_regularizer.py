from __future__ import annotations

import math

import pytest
import torch

from lit_align.objectives import KL, ConditionalMatching, Entropy, Regularizer

LOG_PI = torch.tensor([0.5, 0.2, 0.05]).log()
LOG_REF = torch.tensor([0.4, 0.3, 0.02]).log()


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        # -β times the penalty, at β = 0.1, without the score on the last token
        (KL(), [-0.0223144, 0.0405465, -0.0916291]),  # -0.1 · (log(.5/.4), log(.2/.3), log(.05/.02))
        (Entropy(), [0.0693147, 0.1609438, 0.2995732]),  # -0.1 · (log .5, log .2, log .05)
        (ConditionalMatching(0.1), [0.0693147, 0.1609438, -0.0916291]),  # .4 and .3 exceed .1, .02 does not
    ],
    ids=repr,
)
def test_golden_token_rewards(regularizer: Regularizer, expected: list[float]) -> None:
    torch.testing.assert_close(-0.1 * regularizer(LOG_PI, LOG_REF), torch.tensor(expected), rtol=0, atol=1e-7)


def test_the_golden_reward_with_the_score_on_the_last_token() -> None:
    reward = -0.1 * ConditionalMatching(0.1)(LOG_PI, LOG_REF) + torch.tensor([0.0, 0.0, 1.2])
    torch.testing.assert_close(reward, torch.tensor([0.0693147, 0.1609438, 1.1083709]), rtol=0, atol=1e-6)


def test_the_threshold_is_strict() -> None:
    alpha = 0.25
    at = torch.tensor([math.log(alpha)])
    above = torch.nextafter(at, torch.zeros(1))
    policy = torch.zeros(1)
    assert ConditionalMatching(alpha)(policy, at).item() == -at.item()
    assert ConditionalMatching(alpha)(policy, above).item() == 0.0


@pytest.mark.parametrize("regularizer", [KL(), ConditionalMatching(0.5)], ids=repr)
def test_a_missing_reference_is_named(regularizer: Regularizer) -> None:
    with pytest.raises(ValueError, match=type(regularizer).__name__):
        regularizer(LOG_PI, None)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_range(alpha: float) -> None:
    with pytest.raises(ValueError, match="ConditionalMatching.alpha"):
        ConditionalMatching(alpha)


@pytest.mark.parametrize("regularizer", [KL(), Entropy(), ConditionalMatching(0.3)], ids=repr)
def test_gradient(regularizer: Regularizer) -> None:
    policy = LOG_PI.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda lp: regularizer(lp, LOG_REF.double()), (policy,))
