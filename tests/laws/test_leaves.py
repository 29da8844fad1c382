"""Laws of the classes: abstract or leaf, frozen, constructible, documented."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from lit_align.objectives import Objective, Weighting

from .cases import AXES, EXAMPLES, RESPONSE_AXES, buildable, leaves, objectives, preference_objectives, published

INTERFACES = [*dict.fromkeys([*AXES.values(), *RESPONSE_AXES.values()]), Weighting, Objective]
LEAVES = [leaf for interface in INTERFACES for leaf in leaves(interface)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_can_be_built_for_the_laws(leaf: type) -> None:
    if not buildable(leaf):
        pytest.fail(f"{leaf.__name__} has arguments without defaults: add them to EXAMPLES in tests/laws/cases.py")


@pytest.mark.parametrize("interface", INTERFACES)
def test_an_interface_is_abstract_and_has_leaves(interface: type) -> None:
    assert inspect.isabstract(interface)
    assert leaves(interface)


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_a_frozen_dataclass_that_nothing_in_the_package_extends(leaf: type) -> None:
    # typing.final would say the same to a type checker, but it also tells jsonargparse that a field of an abstract
    # type whose default is such a leaf admits no other class.
    assert dataclasses.is_dataclass(leaf)
    assert leaf.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not [below for below in leaf.__subclasses__() if below.__module__.startswith("lit_align.")]


def test_no_example_is_left_over() -> None:
    assert set(EXAMPLES) <= set(LEAVES)


def test_presets_are_found_and_need_no_arguments() -> None:
    assert {"dpo", "simpo", "sr_dpo", "averaged_dpo", "nca", "orpo"} <= set(published())
    assert len(preference_objectives()) > 20
    assert len(objectives()) > len(published())
