"""The YAML of a configuration is read as plain data of limited size."""

from __future__ import annotations

import time

import pytest
import yaml

from lit_align.cli.configuration import check_numbers, load_yaml


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
        ("max_steps: 010", "010 would be read as 8, to the base 8; write 8, 10 or '010'"),
        ("x: [1, {y: -017}]", "-017 would be read as -15"),
        ("max_steps: 1:30", "1:30 would be read as 90, to the base 60; write 90 or '1:30'"),
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


@pytest.mark.parametrize("text", ["0", "-0", "0.5", "'010'", "09", "00:12:00:00", "1_000", "0x10", "1e-4", "-1"])
def test_numbers_that_are_what_they_look_like(text: str) -> None:
    load_yaml(f"x: {text}")
    check_numbers(["fit", "--trainer.max_steps", text, f"--x={text}"], ())


def test_numbers_of_the_command_line() -> None:
    """An option that takes text keeps leading zeros."""
    for words in (["--trainer.max_steps", "010"], ["--trainer.max_steps=010"], ["--trainer.max_steps", "1:30"]):
        with pytest.raises(ValueError, match="--trainer.max_steps: .* would be read as"):
            check_numbers(["fit", "--run", "010", *words], {"run"})
