"""95 % intervals by bootstrap over prompts and, where responses were sampled with several seeds, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lit_align.evaluation.record import MetricEstimate

RESAMPLES = 2000
ENDS = (2.5, 97.5)
PromptCells: TypeAlias = NDArray[np.float64]
"""Values of shape [prompt, seed] or, for several per response, [prompt, seed, value]."""
Statistic: TypeAlias = Callable[[PromptCells], float]
"""From rows, [row] or [row, value], to a number."""


def resamples(prompts: int, seeds: int, count: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw prompts and seeds with replacement, [draw, prompt] and [draw, seed].

    All statistics of an evaluation use the same draws, so that differences between them are paired.

    Args:
        prompts: number of prompts; as many are drawn.
        seeds: number of seeds; as many are drawn.
        count: number of draws.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    return random.integers(prompts, size=(count, prompts)), random.integers(seeds, size=(count, seeds))


def bootstrap(cells: PromptCells, statistic: Statistic, count: int = RESAMPLES) -> MetricEstimate:
    """Compute a statistic and its percentile interval.

    A draw keeps everything that belongs to a prompt together: a model's response and the baseline's, so that
    comparisons are paired.

    >>> bootstrap(np.array([[1.0], [0.0], [1.0], [1.0]]), lambda rows: float(rows.mean()), count=200)
    MetricEstimate(value=0.75, low=0.25, high=1.0, n=4)
    """
    prompts, seeds = cells.shape[:2]

    def flat(part: PromptCells) -> PromptCells:
        return part.reshape(prompts * seeds, *cells.shape[2:])

    draws = zip(*resamples(prompts, seeds, count), strict=True)
    values = [statistic(flat(cells[rows][:, columns])) for rows, columns in draws]
    return percentile_estimate(statistic(flat(cells)), np.asarray(values), prompts * seeds)


def bootstrap_mean(cells: PromptCells, count: int = RESAMPLES) -> MetricEstimate:
    """Compute the mean and its percentile interval; the same as `bootstrap` with the mean, and faster."""
    prompts, seeds = cells.shape
    drawn_prompts, drawn_seeds = resamples(prompts, seeds, count)
    rows = np.stack([np.bincount(drawn, minlength=prompts) for drawn in drawn_prompts]) / prompts
    columns = np.stack([np.bincount(drawn, minlength=seeds) for drawn in drawn_seeds]) / seeds
    return percentile_estimate(float(cells.mean()), ((rows @ cells) * columns).sum(-1), prompts * seeds)


def percentile_estimate(value: float, values: PromptCells, count: int) -> MetricEstimate:
    """Return a number with the percentile interval of its draws."""
    low, high = np.percentile(values, ENDS)
    return MetricEstimate(float(value), float(low), float(high), count)


def as_cells(rows: Sequence[tuple[int, int, float]]) -> PromptCells:
    """Arrange values by prompt and seed.

    Args:
        rows: index of the prompt, seed, value.

    Raises:
        ValueError: a prompt lacks a seed that another one has.

    >>> as_cells([(7, 0, 1.0), (7, 1, 2.0), (9, 0, 3.0), (9, 1, 4.0)]).tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """
    indices, seeds = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    known = {(index, seed): value for index, seed, value in rows}
    missing = [(index, seed) for index in indices for seed in seeds if (index, seed) not in known]
    if missing:
        raise ValueError(f"row {missing[0][0]} has no value for seed {missing[0][1]}, which others have")
    return np.array([[known[index, seed] for seed in seeds] for index in indices], dtype=np.float64)
