"""The scale of a β is the one of the log-ratios that it multiplies: sums over a response, or means over its tokens.

A mean is smaller than a sum by about the length L, so β grows in return: at equal lengths, means with β are sums with
β / L. What is published for sums (DPO and its kin) is 0.01 to 0.1, seldom up to 0.5; for means (averaged DPO, SimPO)
2 to 10, which at some hundred tokens is the same as 0.005 to 0.05 for sums. A number of the one scale at the other
makes a loss that either hardly moves the policy or is saturated by the first difference of a few nats.

The β of `Square` sets a target, 1 / (2 β): nats between two responses where log-ratios are summed, nats per token
where they are averaged. There the slip shows the other way round: 0.1 asks for 5 nats between responses of any length,
or for 5 nats at every token.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_align.objectives.base import Objective, Scale

WEAKEST = 0.005
"""At the scale of sums: half of the least published β for sums, and where 2 for means is at 400 tokens."""
STRONGEST = 1.0
"""At the scale of sums: twice the largest that is usual; preference matching is exact at 1."""
LEAST_FOR_MEANS, MOST_FOR_MEANS = 1.0, 10.0
"""Means are published with 2 to 10; from half of the one to the other nothing is said, however long responses are."""


FARTHEST = 2.0
"""Nats per token of a target: a fine-tuned model spends about one on a token, more the chosen side cannot win."""
NEAREST = 0.25
"""Nats of a target between whole responses: β = 2 of sums, twice the largest that is usual."""


@dataclass(frozen=True)
class BetaReading:
    """A β, read at the scale of sums.

    Args:
        name: of the term that it belongs to; empty for an objective of one term.
        beta: as it is configured.
        at_sum_scale: β / L^p, which of summed log-ratios gives the same slope.
        warning: what is wrong with it and which β would be right; None if nothing is.
    """

    name: str
    beta: float
    at_sum_scale: float
    warning: str | None = None


def read_betas(objective: Objective, mean_length: float) -> tuple[BetaReading, ...]:
    """Read each β of an objective, and judge whether it has the scale of its log-ratios.

    Where β sets a slope, the slope at equal lengths is compared with what is published; where it sets the target of a
    margin, the target with what a policy can reach. IPO is published with means at β from 0.01 on, that is at targets
    of up to 50 nats per token, which are as good as infinite.

    Args:
        objective: what is optimised.
        mean_length: mean number of scored tokens of a response, above 0.

    >>> from lit_align.objectives import averaged_dpo
    >>> print(read_betas(averaged_dpo(beta=0.1), mean_length=200)[0].warning)
    beta is 0.1 with log-ratios that are divided by the length (mean 200 tokens), which is 0.0005 at the scale of
    sums and hardly moves the policy; 0.1 at the scale of sums is beta: 20 here, and published runs use 2 to 10
    """
    if mean_length <= 0:
        raise ValueError(f"mean_length is {mean_length}; expected a number of tokens above 0")
    return tuple(_reading(scale, mean_length) for scale in objective.scales)


def _reading(scale: Scale, mean_length: float) -> BetaReading:
    divisor = mean_length**scale.length_power
    effective = scale.beta / divisor
    warning = None
    if scale.sets_target:
        warning = _unfit_target(scale, mean_length, effective)
    elif scale.length_power > 0 and effective < WEAKEST and scale.beta < LEAST_FOR_MEANS:
        warning = _too_weak(scale, mean_length, effective)
    elif effective > STRONGEST and scale.beta > MOST_FOR_MEANS**scale.length_power:
        warning = _too_strong(scale, mean_length, effective)
    return BetaReading(scale.name, scale.beta, effective, warning)


def _too_weak(scale: Scale, mean_length: float, effective: float) -> str:
    power = "" if scale.length_power == 1 else f" to the power of {scale.length_power:g}"
    matched = scale.beta * mean_length**scale.length_power
    return (
        f"{_named(scale)} is {scale.beta:g} with log-ratios that are divided by the length{power} (mean "
        f"{mean_length:g} tokens), which is {effective:.2g} at the scale of sums and hardly moves the policy; "
        f"{scale.beta:g} at the scale of sums is beta: {matched:.3g} here, and published runs use 2 to 10"
    )


def _too_strong(scale: Scale, mean_length: float, effective: float) -> str:
    matched = scale.beta / mean_length ** (1 - scale.length_power)
    return (
        f"{_named(scale)} is {scale.beta:g}, which is {effective:.2g} at the scale of sums: a difference of a few "
        f"nats between two responses saturates the loss; {scale.beta:g} at the scale of means is "
        f"beta: {matched:.2g} here (mean {mean_length:g} tokens), and published runs with sums use 0.01 to 0.1"
    )


def _unfit_target(scale: Scale, mean_length: float, effective: float) -> str | None:
    """Return what is wrong with the target 1 / (2 β), in nats between two responses 1 / (2 effective)."""
    between = 1 / (2 * effective)
    if between / mean_length > FARTHEST:
        matched = 5 / mean_length ** (1 - scale.length_power)
        return (
            f"{_named(scale)} is {scale.beta:g} and draws margins to {between / mean_length:.2g} nats per token, "
            "which a policy only reaches by making rejected responses impossible: the loss is as good as linear and "
            f"holds nothing back; beta: {matched:.2g} asks for a tenth of a nat per token"
        )
    if between < NEAREST and scale.beta > MOST_FOR_MEANS**scale.length_power / 5:
        matched = scale.beta / mean_length ** (1 - scale.length_power)
        return (
            f"{_named(scale)} is {scale.beta:g} and draws margins to {between:.2g} nats between whole responses (mean "
            f"{mean_length:g} tokens), which the first steps reach; {scale.beta:g} at the scale of means is "
            f"beta: {matched:.2g} here"
        )
    return None


def _named(scale: Scale) -> str:
    return f"beta of the term {scale.name}" if scale.name else "beta"
