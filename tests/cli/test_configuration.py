"""YAML of a configuration is data, of limited size."""

from __future__ import annotations

import time

import pytest
import yaml

from lit_align.cli.configuration import load_yaml


def bomb(levels: int = 7, width: int = 9) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.security(6, 7)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 1\nbeta: 2\n", "duplicate key 'beta'"),
        ("outer:\n  - {inner: 1, inner: 2}\n", "duplicate key 'inner'"),
        (bomb(), "more than 50000 values"),
        (bomb(levels=13, width=3), "more than 50000 values"),
        ("x: &x []\ny: [" + "*x, " * 51 + "]", "more than 50 aliases"),
        ("x: [" + "y, " * 60_000 + "]", "more than 50000 values"),
        ("[" * 400_000, "more than 50 levels"),
        ("x: &x [*x]", r"\*x in the YAML stands inside of what it stands for"),
        ("x: " + "9" * 900_000, "Exceeds the limit"),
        ("x: " + "y" * 1_000_001, "characters of YAML"),
        ("!!python/object/apply:os.mkdir [executed]", "could not determine a constructor"),
    ],
)
@pytest.mark.fault("G06b", "G07")
def test_yaml_that_is_refused(text: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
    assert time.monotonic() - start < 2
