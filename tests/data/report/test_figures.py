from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from lit_align.data.prepared.store import PairStore
from lit_align.data.report.figures import CHOSEN, REJECTED, draw, gap_figure, lengths_figure, longer_wins_figure
from lit_align.data.report.lengths import LengthReport, Marks, length_report
from tests.data.report.test_lengths import STORE, pair, response

pytestmark = pytest.mark.slow


def pixels(path: Path) -> NDArray[np.float64]:
    return np.asarray(imread(path))[..., :3].astype(np.float64)


def has(image: NDArray[np.float64], colour: str) -> bool:
    """Return whether a few hundred pixels have a colour."""
    wanted = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return bool((np.abs(image - wanted).max(-1) < 0.02).sum() > 100)


def many(count: int, names: tuple[str, ...] = ("a", "b")) -> LengthReport:
    rng = np.random.default_rng(0)
    pairs = [pair(*rng.integers(1, 90, 2).tolist(), prompt=1000 + n) for n in range(count)]
    source = np.arange(count) % len(names)
    return length_report(PairStore.of(pairs), marks=Marks(source=source, names=names))


def test_every_figure_shows_something(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reports = {"train": many(60), "test": length_report(STORE)}
    gaps = {"train": rng.normal(size=(60, 2)), "test": rng.normal(size=(4000, 2))}
    files = draw(tmp_path, reports, gaps)
    assert {path.name for path in files} == {
        *(f"{kind}_{split}.png" for kind in ("lengths", "gap", "scores") for split in ("train", "test")),
        "longer_wins.png",
    }
    for path in files:
        image = pixels(path)
        ink = (image.min(-1) < 0.95).mean()
        assert 0.01 < ink < 0.6, path.name
        assert (image[[0, -1]] == 1).all(), f"{path.name}: something is cut off"
        assert min(image.shape[:2]) > 250


def test_chosen_is_blue_and_rejected_is_orange(tmp_path: Path) -> None:
    draw(tmp_path, {"train": many(60)}, {})
    image = pixels(tmp_path / "lengths_train.png")
    assert has(image, CHOSEN)
    assert has(image, REJECTED)
    assert not has(pixels(tmp_path / "longer_wins.png"), REJECTED), "the check can fail"


def test_the_axes_say_what_they_show() -> None:
    for figure in (lengths_figure("train", many(30).lengths), gap_figure("train", many(30).lengths)):
        (axes,) = figure.axes
        assert axes.get_title(loc="left").startswith("train")
        assert "scored tokens" in axes.get_xlabel()
        assert axes.get_ylabel() in {"responses", "pairs"}


@pytest.mark.parametrize("rows", [[(1, 1)], [(7, 7)] * 9, [(1, 90_000), (2, 1)]], ids=["one", "all equal", "far"])
def test_odd_splits_can_be_drawn(rows: list[tuple[int, int]], tmp_path: Path) -> None:
    report = length_report(PairStore.of([pair(*row, prompt=n) for n, row in enumerate(rows)]))
    for path in draw(tmp_path, {"train": report}, {"train": np.zeros((len(rows), 2))}):
        assert (pixels(path).min(-1) < 0.95).mean() > 0.005, path.name


@pytest.mark.parametrize("far", [10, 5000])
def test_values_beyond_the_axis_are_counted(far: int) -> None:
    """One of 400 responses is far longer than all others."""
    pairs = [pair(10 + n % 20, 12, prompt=n) for n in range(199)] + [pair(far, 12, prompt=500)]
    (axes,) = lengths_figure("train", length_report(PairStore.of(pairs)).lengths).axes
    assert ("1 lie beyond" in axes.get_xlabel()) is (far == 5000)


def test_a_row_for_each_split_and_source() -> None:
    (axes,) = longer_wins_figure({"train": many(40), "test": length_report(STORE)}).axes
    labels = [label.get_text().splitlines()[0] for label in axes.get_yticklabels()]
    assert labels == ["train", "train: a", "train: b", "test"]
    low, high = axes.get_xlim()
    assert low < length_report(STORE).lengths.longer_wins.low
    assert high > length_report(STORE).lengths.longer_wins.high


def test_sides_that_are_not_there_are_not_drawn(tmp_path: Path) -> None:
    alone = [pair(n, 1, prompt=n) for n in range(3, 9)]
    alone = [type(one)(one.prompt, one.chosen, response(5, 0)) for one in alone]
    files = draw(tmp_path, {"train": length_report(PairStore.of(alone))}, {})
    assert [path.name for path in files] == ["lengths_train.png"]
    assert not has(pixels(files[0]), REJECTED)


def test_prompts_alone_are_not_drawn(tmp_path: Path) -> None:
    alone = type(pair(1, 1))([1], response(4, 0), response(5, 0))
    assert draw(tmp_path, {"train": length_report(PairStore.of([alone]))}, {}) == []
