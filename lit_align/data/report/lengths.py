"""Length reports: how long the responses of a split are, and how well length alone predicts the chosen one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lit_align.data.prepared.prepare import Split
from lit_align.data.prepared.store import PairStore
from lit_align.statistics import Distribution, Interval, bin_width, pearson_correlation, wilson

SUMMED_BETA = 0.1
_NAME_LENGTH = 28


@final
@dataclass(frozen=True)
class Marks:
    """What is known of each pair besides its tokens.

    Args:
        scores: scores of the sides, ``[pair, side]``, NaN without a score; None if no pair has any.
        source: number of each pair's source; None if there is only one.
        names: names of the sources, by number.
    """

    scores: NDArray[np.floating[Any]] | None = None
    source: NDArray[np.integer[Any]] | None = None
    names: Sequence[str] = ()


@final
@dataclass(frozen=True)
class PairLengths:
    """Exact statistics of the lengths of pairs, in tokens. Only the scored tokens of a response count.

    Args:
        pairs: number of pairs, including those with only one side.
        prompt: lengths of the prompts.
        chosen: lengths of the chosen responses.
        rejected: lengths of the rejected responses.
        gap: chosen minus rejected, of the pairs that have both.
        chosen_longer: share of pairs whose chosen response is longer.
        equally_long: share of pairs whose responses are equally long.
        longer_wins: accuracy of the rule "the longer response is better"; ties count one half.
        chosen_truncated: number of chosen responses that were cut.
        rejected_truncated: number of rejected responses that were cut.
        scored: number of pairs in which both sides have a score.
        score_correlation: Pearson correlation of the gap in tokens with the gap in scores; None if it is undefined.
        matched_beta: see ``matched_beta``, for a summed β of 0.1.
    """

    pairs: int
    prompt: Distribution
    chosen: Distribution
    rejected: Distribution
    gap: Distribution
    chosen_longer: float
    equally_long: float
    longer_wins: Interval
    chosen_truncated: int
    rejected_truncated: int
    scored: int
    score_correlation: float | None
    matched_beta: float


@final
@dataclass(frozen=True)
class LengthReport:
    """Statistics of a split that should be known before training on it.

    Args:
        lengths: statistics of all pairs.
        sources: statistics of each source, if there are several.
        duplicates: pairs that repeat an earlier prompt and responses.
        contradictions: pairs that also occur with chosen and rejected swapped; prompts alone never do.
        seen_prompts: pairs whose prompt is also in the training split; None for the training split.
        seen_pairs: pairs that are also in the training split; None for the training split.
        read: rows read, including those left out; None if unknown.
        dropped: number of rows left out, by reason.
        notes: note → number of pairs that it applies to.
    """

    lengths: PairLengths
    sources: Mapping[str, PairLengths]
    duplicates: int
    contradictions: int
    seen_prompts: int | None = None
    seen_pairs: int | None = None
    read: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.lengths.pairs

    @property
    def rows(self) -> int:
        """Rows read or, if unknown, the pairs and the rows left out."""
        return self.pairs + sum(self.dropped.values()) if self.read is None else self.read

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def split_report(split: Split, train: Split | None = None) -> LengthReport:
    """Compute the report of a prepared split."""
    report = length_report(split.store, train.store if train else None, _marks(split))
    return replace(report, read=split.read, dropped=split.dropped, notes=split.notes)


def _marks(split: Split) -> Marks:
    has_scores = bool(np.isfinite(split.scores).any())
    return Marks(split.scores if has_scores else None, split.source_index, split.sources)


def score_gaps(split: Split) -> NDArray[np.float64]:
    """Return chosen minus rejected, in tokens and in scores, of the pairs with two scored sides, ``[pair, 2]``."""
    scores, tokens = _marks(split).scores, split.store.lengths
    if scores is None:
        return np.empty((0, 2))
    gaps: NDArray[np.float64] = np.stack([tokens[:, 0] - tokens[:, 1], scores[:, 0] - scores[:, 1]], axis=1)
    known: NDArray[np.float64] = gaps[np.isfinite(gaps).all(axis=1) & (tokens > 0).all(axis=1)]
    return known


def length_report(store: PairStore, train: PairStore | None = None, marks: Marks = Marks()) -> LengthReport:
    """Compute the report of a split."""
    has_response = (store.lengths > 0).any(axis=1)
    forward = store.hashes(("prompt", "chosen", "rejected"))
    backward = store.hashes(("prompt", "rejected", "chosen"))
    return LengthReport(
        lengths=_lengths(store, marks.scores, np.ones(len(store), dtype=np.bool_)),
        sources=_by_source(store, marks),
        duplicates=len(forward) - len(np.unique(forward)),
        contradictions=int(np.isin(forward[has_response], backward[has_response]).sum()),
        seen_prompts=_seen(store, train, ("prompt",)),
        seen_pairs=_seen(store, train, ("prompt", "chosen", "rejected")),
    )


def short_name(name: str) -> str:
    """Shorten the name of a source to its last 28 characters, for tables and figures."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def matched_beta(lengths: NDArray[np.integer[Any]], summed: float = SUMMED_BETA) -> float:
    r"""Return the β for averaged log-probs that pulls as hard as a β for summed ones: $\beta \cdot \bar L$.

    At the start of training, where the policy is the reference and every margin is 0, the gradient of
    $-\log\sigma(\beta D)$ is $\frac{\beta}{2}$ times that of the margin. With sums each token of the pair weighs
    $\frac{\beta}{2}$, so a pair of n and m tokens weighs $\frac{\beta}{2} (n + m)$. With means each token weighs
    $\frac{\beta'}{2n}$ or $\frac{\beta'}{2m}$, so the pair weighs $\beta'$. Over all pairs the two weigh the same at
    β' = β · mean of (n + m) / 2, where that mean is the mean length of the responses of both sides. If all have the
    same length L this is exact at every step: averaged DPO(β) = DPO(β / L).

    Args:
        lengths: scored tokens of each response, 0 for an absent side.
        summed: the β for sums.

    >>> round(matched_beta(np.array([[30, 20], [40, 10]])), 6)
    2.5
    """
    present = lengths[lengths > 0]
    return summed * float(present.mean()) if len(present) else 0.0


def _by_source(store: PairStore, marks: Marks) -> dict[str, PairLengths]:
    if marks.source is None or len(set(marks.names)) < 2:
        return {}
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(marks.names):
        numbers.setdefault(name, []).append(number)  # a mixture may list a source twice
    return {name: _lengths(store, marks.scores, np.isin(marks.source, which)) for name, which in numbers.items()}


def _lengths(store: PairStore, scores: NDArray[np.floating[Any]] | None, which: NDArray[np.bool_]) -> PairLengths:
    """Compute the statistics of some pairs; a response without tokens is an absent side."""
    tokens, prompts = store.lengths[which], store.part_lengths[which, 0]
    present = tokens > 0
    both = present.all(axis=1)
    chosen, rejected = tokens[both].T
    gap, width = chosen - rejected, bin_width(tokens[present])
    longer, equal, count = int((gap > 0).sum()), int((gap == 0).sum()), int(both.sum())
    score_gap = None if scores is None else (scores[which, 0] - scores[which, 1])[both]
    scored = np.zeros(count, dtype=np.bool_) if score_gap is None else np.isfinite(score_gap)
    truncated = store.truncated[which].sum(axis=0).tolist()
    return PairLengths(
        pairs=len(tokens),
        prompt=Distribution.of(prompts, bin_width(prompts)),
        chosen=Distribution.of(tokens[present[:, 0], 0], width),
        rejected=Distribution.of(tokens[present[:, 1], 1], width),
        gap=Distribution.of(gap, bin_width(gap)),
        chosen_longer=longer / count if count else 0.0,
        equally_long=equal / count if count else 0.0,
        longer_wins=wilson(longer + 0.5 * equal, count),
        chosen_truncated=truncated[0],
        rejected_truncated=truncated[1],
        scored=int(scored.sum()),
        score_correlation=None if score_gap is None else pearson_correlation(gap[scored], score_gap[scored]),
        matched_beta=matched_beta(tokens),
    )


def _seen(store: PairStore, train: PairStore | None, parts: tuple[str, ...]) -> int | None:
    if train is None:
        return None
    return int(np.isin(store.hashes(parts), train.hashes(parts)).sum())
