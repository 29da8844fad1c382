"""What responses are like as text: lengths, endings, repetition, variety."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lit_align.evaluation.intervals import RESAMPLES, PromptCells, Statistic, bootstrap, bootstrap_mean
from lit_align.evaluation.record import MetricEstimate

LENGTH_PERCENTILES = (10, 50, 90)
REPEATED = 3
"""Words of the n-grams whose repetition is counted."""


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return all runs of n words of a text, in lower case.

    >>> ngrams("The cat, the cat", 2)
    [('the', 'cat,'), ('cat,', 'the'), ('the', 'cat')]
    """
    words = text.lower().split()
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(text: str, n: int) -> float:
    """Return the share of distinct runs among the runs of n words; 1 for a text with none.

    Li et al. 2016, arXiv:1510.03055, within one response.

    >>> distinct("a b a b", 1)
    0.5
    """
    runs = ngrams(text, n)
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(text: str) -> float:
    """Return the share of runs of three words that have occurred before in the text.

    >>> repetition("yes it is yes it is"), repetition("yes")
    (0.25, 0.0)
    """
    return 1.0 - distinct(text, REPEATED)


def corpus_distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct runs of n words over all texts together; 1 without any.

    It falls with the number of texts, so it compares only evaluations of equally many.
    """
    runs = [run for text in texts for run in ngrams(text, n)]
    return len(set(runs)) / len(runs) if runs else 1.0


def text_metrics(
    texts: NDArray[np.object_], tokens: PromptCells, ended: PromptCells, count: int = RESAMPLES
) -> dict[str, MetricEstimate]:
    """Return the numbers on the texts of a model's responses.

    Args:
        texts: the responses, [prompt, seed].
        tokens: their numbers of tokens, the end token included.
        ended: 1 for a response that ended by itself, else 0.
        count: draws of the bootstrap.
    """
    lengths = {"tokens": tokens, "words": _over(texts, lambda text: float(len(text.split())))}
    metrics: dict[str, MetricEstimate] = {}
    for name, cells in lengths.items():
        metrics[f"length/{name}"] = bootstrap_mean(cells, count)
        for percentile in LENGTH_PERCENTILES:
            metrics[f"length/{name}/p{percentile}"] = bootstrap(cells, _percentile(percentile), count)
    metrics["ended"] = bootstrap_mean(ended, count)
    metrics["repetition"] = bootstrap_mean(_over(texts, repetition), count)
    for n in (1, 2):
        metrics[f"distinct_{n}"] = bootstrap_mean(_over(texts, partial(distinct, n=n)), count)
        value = corpus_distinct(list(_flat(texts)), n)
        metrics[f"distinct_{n}/corpus"] = MetricEstimate(value, n=texts.size)
    return metrics


def _percentile(percentile: int) -> Statistic:
    return lambda rows: float(np.percentile(rows, percentile))


def _flat(texts: NDArray[np.object_]) -> Iterator[str]:
    return (str(text) for text in texts.flat)


def _over(texts: NDArray[np.object_], measure: Callable[[str], float]) -> PromptCells:
    return np.array([measure(text) for text in _flat(texts)], dtype=np.float64).reshape(texts.shape)
