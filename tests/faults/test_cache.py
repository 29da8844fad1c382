"""Stored log-probabilities of a reference are valid or are computed again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lit_align import testbed
from tests.faults.cases import cases
from tests.runner import BASE, SHORT, Ended, first_loss, lit_align, metrics, ok

PAIRS = 4
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()[:PAIRS]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def filled(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reference and its stored values for four pairs."""
    folder = tmp_path_factory.mktemp("filled")
    shipped = testbed.resolve("testbed:policy")
    assert shipped is not None
    shutil.copytree(shipped, folder / "reference")
    _weights(folder / "reference")
    assert counts(fit(folder / "run", folder, pairs, "Precomputed")) == (PAIRS, 0)
    return folder


def fit(run: Path, folder: Path, rows: Path, reference: str, *more: object, objective: str = "dpo") -> Ended:
    kept = ("--model.reference.cache", folder / "cache") if reference == "Precomputed" else ()
    return lit_align(
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", objective, "--data.train", rows),
        *("--model.reference", reference, "--model.reference.path", folder / "reference", *kept),
        *("--trainer.max_steps", 1, *more),
    )


def counts(ended: Ended) -> tuple[int, int]:
    """Return the number of rows that were computed and that were read from the cache."""
    found = re.search(r"reference  (\d+) rows computed, (\d+) found", ok(ended).out)
    assert found is not None, ended.out
    return int(found[1]), int(found[2])


def _weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(config))


def _epsilon(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-2}))


def _nothing(folder: Path) -> None:
    """Change nothing."""


MISSED: dict[str, tuple[Change, tuple[object, ...]]] = {
    "D20": (_nothing, ("--data.max_length", 40)),
    "D20 precision": (_nothing, ("--trainer.precision", "bf16-mixed")),
    "D22": (_rope, ()),
    "D22 epsilon": (_epsilon, ()),
    "D23": (_weights, ()),
}
FOUND: dict[str, tuple[str, tuple[object, ...]]] = {
    "D20b rate": ("dpo", ("--model.optimizer.lr", "0.5", "--data.batch_size", 3, "--seed_everything", 5)),
    "D20b objective": ("ipo", ()),
    "D21": ("ld_dpo", ()),
    "D21 mean": ("averaged_dpo", ()),
}


def right(run: Path, folder: Path, rows: Path, *more: object, objective: str = "dpo") -> float:
    """Return the first loss with a reference that has no stored values."""
    ok(fit(run, folder, rows, "SecondModel", *more, objective=objective))
    return first_loss(run)


def variants_long(rows: Iterable[str]) -> list[Any]:
    """Return one case per row; all but the first are long tests."""
    first, *others = cases(rows)
    return [first, *(pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.long]) for case in others)]


@pytest.mark.parametrize("fault", variants_long(MISSED))
def test_what_enters_a_value_is_computed_again_and_right(
    pairs: Path, filled: Path, tmp_path: Path, fault: str
) -> None:
    change, more = MISSED[fault]
    folder = tmp_path / "folder"
    shutil.copytree(filled, folder)
    stale = first_loss(folder / "run")
    change(folder / "reference")
    assert counts(fit(tmp_path / "run", folder, pairs, "Precomputed", *more)) == (PAIRS, 0)
    expected = right(tmp_path / "right", folder, pairs, *more)
    assert first_loss(tmp_path / "run") == pytest.approx(expected, abs=1e-5 if "precision" not in fault else 5e-3)
    if "precision" not in fault:
        assert abs(expected - stale) > 1e-4, "the change does not show, so the test cannot fail"


@pytest.mark.parametrize("fault", variants_long(FOUND))
def test_what_does_not_enter_a_value_finds_it_and_it_is_right(
    pairs: Path, filled: Path, tmp_path: Path, fault: str
) -> None:
    """Values are stored per token, so another averaging reuses them."""
    objective, more = FOUND[fault]
    folder = tmp_path / "folder"
    shutil.copytree(filled, folder)
    kept = {path.name for path in (folder / "cache").rglob("*.arrow")}
    assert kept
    computed, found = counts(fit(tmp_path / "run", folder, pairs, "Precomputed", *more, objective=objective))
    assert computed == 0
    assert found == (3 if "--data.batch_size" in more else PAIRS)  # of one step
    assert {path.name for path in (folder / "cache").rglob("*.arrow")} == kept
    expected = right(tmp_path / "right", folder, pairs, *more, objective=objective)
    assert first_loss(tmp_path / "run") == pytest.approx(expected, abs=1e-5)


@pytest.mark.fault("D24")
@pytest.mark.parametrize(("scale", "reason"), [(float("nan"), "not finite"), (1e38, "log-probs of row")])
def test_d24_a_reference_that_is_not_finite_leaves_nothing_behind(
    pairs: Path, filled: Path, tmp_path: Path, scale: float, reason: str
) -> None:
    """A weight that is NaN, and finite weights whose logits are not finite."""
    folder = tmp_path / "folder"
    shutil.copytree(filled / "reference", folder / "reference")
    weights = load_file(folder / "reference" / "model.safetensors")
    weights["model.norm.weight"] *= scale
    save_file(weights, folder / "reference" / "model.safetensors", metadata={"format": "pt"})
    ended = fit(tmp_path / "run", folder, pairs, "Precomputed")
    assert ended.code == 2, ended.out
    assert reason in ended.out
    assert "not finite" in ended.out
    assert not list((folder / "cache").rglob("*.arrow"))
    assert not metrics(tmp_path / "run")


@pytest.mark.fault("D25")
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-40],
        pytest.param(lambda content: b"", marks=pytest.mark.long),
        pytest.param(lambda content: content[:99], marks=pytest.mark.long),
    ],
)
def test_d25_what_is_cut_short_is_computed_again(
    pairs: Path, filled: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(filled, folder)
    (shard,) = (folder / "cache").rglob("*.arrow")
    shard.write_bytes(damage(shard.read_bytes()))
    assert counts(fit(tmp_path / "run", folder, pairs, "Precomputed")) == (PAIRS, 0)
    assert first_loss(tmp_path / "run") == pytest.approx(first_loss(folder / "run"), abs=1e-6)
