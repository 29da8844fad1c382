"""The package data exist, are small, and are found by name."""

import pytest

from lit_align import testbed


@pytest.mark.parametrize("name", testbed.PARTS)
def test_every_name_leads_to_something(name: str) -> None:
    found = testbed.resolve(f"testbed:{name}")
    assert found is not None
    assert found.exists()


def test_other_names_mean_what_they_say() -> None:
    assert testbed.resolve("train.jsonl") is None
    assert testbed.resolve("org/testbed:train") is None


def test_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no 'valid'; it has testbed:policy, testbed:train"):
        testbed.resolve("testbed:valid")


def test_package_data_are_small() -> None:
    size = sum(file.stat().st_size for file in testbed.path("").rglob("*") if file.is_file())
    assert size <= 6_000_000
