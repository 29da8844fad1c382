"""The list of presets: each published name with its group and the situation that it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ParamSpec, TypeVar

from lit_align.objectives.base import Objective

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made", bound=Objective)


class Group(Enum):
    """The titles under which the catalogue lists presets, in its order."""

    CONTRAST = "Sums of log-ratios: DPO and other contrasts"
    LENGTH = "Length"
    SELF_REFINEMENT = "Self-refinement"
    MATCHING = "Preference matching"
    DIVERGENCE = "Other divergences"
    RESPONSE = "Each response by itself"
    LIKELIHOOD = "A likelihood beside the preference"
    WIDER = "Beyond the pair"


@dataclass(frozen=True)
class Preset:
    """A published name for a choice of parts.

    Args:
        make: the function of that name, whose arguments are the paper's hyperparameters.
        group: which presets it stands beside.
        when: the situation that it is for, in a line.
    """

    make: Callable[..., Objective]
    group: Group
    when: str


PRESETS: dict[str, Preset] = {}
"""Every preset by its name; all other lists of presets are derived from it."""


def preset(group: Group, when: str) -> Callable[[Callable[Arguments, Made]], Callable[Arguments, Made]]:
    """Enter the decorated function into the list of presets.

    Args:
        group: which presets it stands beside.
        when: the situation that it is for, in a line.
    """

    def enter(make: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
        PRESETS[make.__name__] = Preset(make, group, when)
        return make

    return enter
