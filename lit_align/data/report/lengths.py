"""A length report says how long the responses of a split are, and how well length alone predicts the chosen one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lit_align.data.prepared.prepare import Split
from lit_align.data.prepared.store import PairStore
from lit_align.data.report.statistics import Distribution, Interval, bin_width, pearson, wilson

SUMMED_BETA = 0.1


@final
@dataclass(frozen=True)
class Marks:
    """What is known of each pair of a split beside its tokens.

    Args:
        scores: what chosen and rejected were scored with, NaN where they were not; None if none was.
        source: number of the source that each pair is from; None if there is only one.
        names: of the sources, by number.
    """

    scores: NDArray[np.floating[Any]] | None = None
    source: NDArray[np.integer[Any]] | None = None
    names: Sequence[str] = ()


@final
@dataclass(frozen=True)
class PairLengths:
    """Exact numbers of the lengths of some pairs, in tokens; of responses only the scored tokens count.

    Args:
        pairs: number of pairs, also of those with one side only.
        prompt: lengths of the prompts.
        chosen: lengths of the chosen responses.
        rejected: lengths of the rejected responses.
        gap: chosen minus rejected, of the pairs that have both.
        chosen_longer: share of pairs whose chosen response is the longer one.
        equally_long: share of pairs whose responses are equally long.
        longer_wins: accuracy of the rule "the longer response is better", ties counted one half.
        chosen_truncated: chosen responses that were cut.
        rejected_truncated: rejected responses that were cut.
        scored: pairs in which both sides have a score.
        score_correlation: Pearson's, of the gap in tokens with the gap in scores; None without scores that differ.
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
    """What is to be known of a split before it is trained on.

    Args:
        lengths: of all pairs.
        sources: the same of each source, if there are several.
        duplicates: pairs that stood before with the same prompt and responses.
        contradictions: pairs that stand elsewhere the other way round; prompts alone never do.
        seen_prompts: pairs whose prompt is also in the training split; None for that split itself.
        seen_pairs: pairs that are also in the training split; None for that split itself.
        read: rows that were read, also those left out; None if nobody counted.
        dropped: rows that were left out, by reason.
        notes: how many pairs needed which remark.
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
        """Rows that were read, or, if nobody counted, those that must have been."""
        return self.pairs + sum(self.dropped.values()) if self.read is None else self.read

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def split_report(split: Split, train: Split | None = None) -> LengthReport:
    """The numbers of a prepared split.

    Args:
        split: its pairs, and what became of its rows.
        train: the training pairs, if the split is for evaluation.
    """
    report = length_report(split.store, train.store if train else None, marks_of(split))
    return replace(report, read=split.read, dropped=split.dropped, notes=split.notes)


def marks_of(split: Split) -> Marks:
    """Scores of a split's pairs, if any pair has them, and its sources."""
    scored = bool(np.isfinite(split.scores).any())
    return Marks(split.scores if scored else None, split.source_index, split.sources)


def score_gaps(split: Split) -> NDArray[np.float64]:
    """Chosen minus rejected, in tokens and in scores, of the pairs whose sides both have a score: [pair, 2]."""
    scores, tokens = marks_of(split).scores, split.store.lengths
    if scores is None:
        return np.empty((0, 2))
    gaps: NDArray[np.float64] = np.stack([tokens[:, 0] - tokens[:, 1], scores[:, 0] - scores[:, 1]], axis=1)
    known: NDArray[np.float64] = gaps[np.isfinite(gaps).all(axis=1) & (tokens > 0).all(axis=1)]
    return known


def length_report(store: PairStore, train: PairStore | None = None, marks: Marks = Marks()) -> LengthReport:
    """The numbers of a split.

    Args:
        store: its pairs.
        train: the training pairs, if the split is for evaluation: what of it was seen there is counted.
        marks: what else is known of its pairs.
    """
    said = (store.lengths > 0).any(axis=1)
    forward = store.hashes(("prompt", "chosen", "rejected"))
    backward = store.hashes(("prompt", "rejected", "chosen"))
    everything = np.ones(len(store), dtype=np.bool_)
    return LengthReport(
        lengths=_lengths(store, marks.scores, everything),
        sources=_by_source(store, marks),
        duplicates=len(forward) - len(np.unique(forward)),
        contradictions=int(np.isin(forward[said], backward[said]).sum()),
        seen_prompts=_seen(store, train, ("prompt",)),
        seen_pairs=_seen(store, train, ("prompt", "chosen", "rejected")),
    )


def matched_beta(lengths: NDArray[np.integer[Any]], summed: float = SUMMED_BETA) -> float:
    r"""The β for averaged log-probs that pulls as hard as a β for summed ones: $\beta \cdot \bar L$.

    At the start of training, where the policy is the reference and every margin is 0, the gradient of
    $-\log\sigma(\beta D)$ is $\frac{\beta}{2}$ times that of the margin. With sums each token of the pair weighs
    $\frac{\beta}{2}$, so a pair of n and m tokens weighs $\frac{\beta}{2} (n + m)$. With means each token weighs
    $\frac{\beta'}{2n}$ or $\frac{\beta'}{2m}$, so the pair weighs $\beta'$. Over all pairs the two weigh the same at
    β' = β · mean of (n + m) / 2: the mean length of the responses of both sides. Where all have the same length L this
    is exact at every step, averaged DPO(β) = DPO(β / L).

    Args:
        lengths: scored tokens of each response, 0 for a side that is not there.
        summed: the β for sums.

    >>> round(matched_beta(np.array([[30, 20], [40, 10]])), 6)
    2.5
    """
    there = lengths[lengths > 0]
    return summed * float(there.mean()) if len(there) else 0.0


def _by_source(store: PairStore, marks: Marks) -> dict[str, PairLengths]:
    if marks.source is None or len(set(marks.names)) < 2:
        return {}
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(marks.names):
        numbers.setdefault(name, []).append(number)  # a mixture may name a source twice
    return {name: _lengths(store, marks.scores, np.isin(marks.source, which)) for name, which in numbers.items()}


def _lengths(store: PairStore, scores: NDArray[np.floating[Any]] | None, which: NDArray[np.bool_]) -> PairLengths:
    """The numbers of some pairs; a response without tokens is a side that is not there."""
    tokens, prompts = store.lengths[which], store.part_lengths[which, 0]
    there = tokens > 0
    both = there.all(axis=1)
    chosen, rejected = tokens[both].T
    gap, wide = chosen - rejected, bin_width(tokens[there])
    longer, equal, count = int((gap > 0).sum()), int((gap == 0).sum()), int(both.sum())
    differences = None if scores is None else (scores[which, 0] - scores[which, 1])[both]
    scored = np.zeros(count, dtype=np.bool_) if differences is None else np.isfinite(differences)
    cut = store.truncated[which].sum(axis=0).tolist()
    return PairLengths(
        pairs=len(tokens),
        prompt=Distribution.of(prompts, bin_width(prompts)),
        chosen=Distribution.of(tokens[there[:, 0], 0], wide),
        rejected=Distribution.of(tokens[there[:, 1], 1], wide),
        gap=Distribution.of(gap, bin_width(gap)),
        chosen_longer=longer / count if count else 0.0,
        equally_long=equal / count if count else 0.0,
        longer_wins=wilson(longer + 0.5 * equal, count),
        chosen_truncated=cut[0],
        rejected_truncated=cut[1],
        scored=int(scored.sum()),
        score_correlation=None if differences is None else pearson(gap[scored], differences[scored]),
        matched_beta=matched_beta(tokens),
    )


def _seen(store: PairStore, train: PairStore | None, parts: tuple[str, ...]) -> int | None:
    if train is None:
        return None
    return int(np.isin(store.hashes(parts), train.hashes(parts)).sum())
