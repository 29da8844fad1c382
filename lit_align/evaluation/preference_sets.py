r"""Implicit rewards of a policy on preference pairs: nothing is generated.

The implicit reward of a response is its log-ratio to the reference, as the sum over its tokens or as their mean:

$$r_{sum} = \log\frac{\pi(y \mid x)}{\pi_{ref}(y \mid x)}, \qquad r_{mean} = \frac{r_{sum}}{|y|}$$

and log π alone without a reference. As in RewardBench (Lambert et al. 2024, arXiv:2403.13787), a pair is right if the
chosen response has the higher reward; equal rewards count one half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, pearsonr, spearmanr
from torch import Tensor

from lit_align.data.batches.collate import Collate
from lit_align.data.formats.registry import FormatName
from lit_align.data.prepared.read_split import SplitReader
from lit_align.errors import DataError, shown
from lit_align.evaluation.evaluate import check_same_tokens
from lit_align.evaluation.intervals import RESAMPLES, percentile_estimate
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.prompts import evenly_spaced, in_messages
from lit_align.evaluation.record import PAIRS, MetricEstimate, RowFile, content_digest
from lit_align.evaluation.respond import progress
from lit_align.models.logps.log_probs import LogProbReader
from lit_align.types import PairBatch, PreferencePair

SIMILAR = 0.1
"""Lengths that differ by at most this share of the longer one are similar."""
FEWEST_PAIRS = 3
"""Pairs from which a correlation is computed."""
SCALES = ("sum", "mean")
_SLOW_RESAMPLES = 300
_PADDED_TOKENS = 2048
"""Most tokens of a side of a batch, padding included, unless a pair alone has more."""
Keep: TypeAlias = Callable[[Sequence["PairMargin"]], None]
Numbers: TypeAlias = NDArray[np.float64]
_STATISTICS: Mapping[str, Callable[[Numbers, Numbers], Any]] = {
    "pearson": pearsonr,
    "spearman": spearmanr,
    "kendall": kendalltau,
}


@dataclass(frozen=True)
class PairMargin:
    """What a policy makes of one pair.

    Args:
        index: of the pair.
        prompt: number of its prompt; pairs on the same prompt share it.
        sum: reward of the chosen response minus that of the rejected one, in nats.
        mean: the same at mean scale, in nats per token.
        chosen_tokens: length of the chosen response.
        rejected_tokens: length of the rejected one.
        gap: score of the chosen response minus that of the rejected one, where the row has scores.
        group: value of the column that the pairs are grouped by.
    """

    index: int
    prompt: int
    sum: float
    mean: float
    chosen_tokens: int
    rejected_tokens: int
    gap: float | None = None
    group: str | None = None

    @property
    def length_bucket(self) -> str:
        """Whether the chosen response is longer, shorter, or of similar length."""
        difference = self.chosen_tokens - self.rejected_tokens
        if abs(difference) <= SIMILAR * max(self.chosen_tokens, self.rejected_tokens):
            return "similar_length"
        return "chosen_longer" if difference > 0 else "chosen_shorter"


def read_pairs(
    source: str, format_name: FormatName = "auto", limit: int | None = None, chat: bool = False
) -> list[PreferencePair]:
    """Read the pairs of a preference set.

    Args:
        source: as for ``data.train``.
        format_name: of the rows.
        limit: most pairs, which are then evenly spaced; None for all.
        chat: make messages of prompts and responses that are plain text.

    Raises:
        FileNotFoundError: the source does not exist.
        DataError: a row cannot be used, or none has two responses.
    """
    pairs: list[PreferencePair] = []
    for row in SplitReader.of(source, format_name):
        if isinstance(row, DataError):
            raise row
        pairs += [pair for pair in row.pairs if pair.chosen is not None and pair.rejected is not None]
    if not pairs:
        raise DataError(source, "no pairs of two responses")
    pairs = evenly_spaced(pairs, limit)
    return [in_messages(pair) for pair in pairs] if chat else pairs


def pair_margins(
    loaded: LoadedModel,
    reference: LoadedModel | None,
    pairs: Sequence[PreferencePair],
    by: str | None = None,
    batch_size: int = 8,
    keep: Keep | None = None,
) -> tuple[list[PairMargin], list[str]]:
    """Compute the margins of implicit rewards.

    Args:
        loaded: the policy.
        reference: with the same tokens; None for none.
        pairs: with two responses each.
        by: column of the rows to group by; None for none.
        batch_size: pairs per forward pass.
        keep: is called with the margins of each batch; None for nothing.

    Returns:
        The margins, and what a reader must know, such as pairs that are too long for the model.

    Raises:
        DataError: a pair cannot be tokenized, or lacks the column.
    """
    check_same_tokens(loaded, reference)
    groups = [_group(pair, by) for pair in pairs]
    prompts = prompt_numbers(pairs)
    tokenized = loaded.tokenize(pairs)
    widths = [len(pair.prompt) + max(len(side.ids) for side in pair.sides) for pair in tokenized]
    fits = [loaded.positions is None or width <= loaded.positions for width in widths]
    order = sorted((place for place in range(len(pairs)) if fits[place]), key=widths.__getitem__)
    readers = [LogProbReader(source.model) for source in (loaded, reference) if source is not None]
    margins: dict[int, PairMargin] = {}
    with progress(f"{loaded.name}: pairs", len(order)) as advance:
        for places in _batches(order, widths, batch_size):
            batch = Collate(loaded.encoder.pad)([(tokenized[place], 1.0) for place in places]).to(loaded.device)
            sums, lengths = _log_ratios(readers, batch)
            for place, own, tokens in zip(places, sums.tolist(), lengths.tolist(), strict=True):
                means = [value / length for value, length in zip(own, tokens, strict=True)]
                margins[place] = PairMargin(
                    index=place,
                    prompt=prompts[place],
                    sum=own[0] - own[1],
                    mean=means[0] - means[1],
                    chosen_tokens=tokens[0],
                    rejected_tokens=tokens[1],
                    gap=_gap(pairs[place]),
                    group=groups[place],
                )
            if keep is not None:
                keep([margins[place] for place in places])
            advance(len(places))
    return [margins[place] for place in sorted(margins)], _too_long(loaded, len(pairs) - len(order), len(pairs))


def kept_margins(
    loaded: LoadedModel,
    reference: LoadedModel | None,
    pairs: Sequence[PreferencePair],
    by: str | None,
    folder: Path,
    batch_size: int = 8,
) -> tuple[list[PairMargin], list[str]]:
    """Compute margins, or read them where nothing that they depend on has changed.

    They are kept on disk as they come: a process that was interrupted goes on where it was.
    """
    depends_on = {"model": loaded.identity, "reference": None if reference is None else reference.identity, "by": by}
    file = RowFile(folder / PAIRS, depends_on)
    texts = [pair_digest(pair, by) for pair in pairs]
    known = {row["of"] for row in file.rows}
    missing = [place for place, text in enumerate(texts) if text not in known]

    prompts = prompt_numbers(pairs)

    def keep(margins: Sequence[PairMargin]) -> None:
        places = [missing[margin.index] for margin in margins]
        own = [replace(row, index=at, prompt=prompts[at]) for row, at in zip(margins, places, strict=True)]
        file.add(_margin_record(row, texts[row.index]) for row in own)

    if missing:
        pair_margins(loaded, reference, [pairs[place] for place in missing], by, batch_size, keep)
    rows = {row.pop("of"): PairMargin(**row) for row in map(dict, file.rows)}
    margins = [
        replace(rows[text], index=place, prompt=prompts[place]) for place, text in enumerate(texts) if text in rows
    ]
    return margins, _too_long(loaded, len(pairs) - len(margins), len(pairs))


def pair_digest(pair: PreferencePair, by: str | None) -> str:
    """Return a digest of all of a pair that its margin and its group depend on."""
    return content_digest([pair.prompt, pair.chosen, pair.rejected, pair.scores, _group(pair, by)])


def prompt_numbers(pairs: Sequence[PreferencePair]) -> list[int]:
    """Return the number of each pair's prompt among the distinct prompts."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(str(pair.prompt), len(numbers)) for pair in pairs]


def _margin_record(margin: PairMargin, of: str) -> dict[str, Any]:
    return {"of": of, **{name: value for name, value in asdict(margin).items() if value is not None}}


def _too_long(loaded: LoadedModel, left_out: int, count: int) -> list[str]:
    note = f"{loaded.name}: {left_out} of {count} pairs are longer than its {loaded.positions} positions"
    return [note] if left_out else []


def _batches(order: Sequence[int], widths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield places in batches of at most so many pairs, and of few tokens, so that a long pair pads no other.

    >>> list(_batches([0, 1, 2, 3], [10, 10, 1500, 1600], 32))
    [[0, 1], [2], [3]]
    """
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) == most or (len(batch) + 1) * widths[place] > _PADDED_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def _log_ratios(readers: Sequence[LogProbReader], batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Return the sums of the log-ratios of both responses, [pair, side], and the numbers of their scored tokens."""
    sums, *reference = (reader(batch).policy.double().sum(-1) for reader in readers)
    return sums - sum(reference), batch.lengths


def _group(pair: PreferencePair, by: str | None) -> str | None:
    if by is None:
        return None
    if by not in pair.extra:
        raise DataError(pair.where, f"no such column to group by; found {shown(list(pair.extra))}", by)
    return str(pair.extra[by])


def _gap(pair: PreferencePair) -> float | None:
    gap = None if pair.scores is None else pair.scores[0] - pair.scores[1]
    return gap if gap is not None and np.isfinite(gap) else None


def pair_metrics(
    margins: Sequence[PairMargin], by: str | None = None, count: int = RESAMPLES
) -> dict[str, MetricEstimate]:
    """Return accuracies, by length bucket and group, and correlations with score gaps; the bootstrap draws prompts.

    Returns:
        Name → number; empty without pairs, as where all are too long for a model.
    """
    metrics: dict[str, MetricEstimate] = {}
    for scale in SCALES if margins else ():
        name = f"pairs/accuracy/{scale}"
        metrics[name] = _accuracy(margins, scale, count)
        parts = {bucket: [m for m in margins if m.length_bucket == bucket] for bucket in _buckets(margins)}
        groups = {group: [m for m in margins if m.group == group] for group in _groups(margins)}
        parts |= {f"{by}={group}": part for group, part in groups.items()}
        metrics |= {f"{name}/{part}": _accuracy(rows, scale, count) for part, rows in parts.items()}
        if groups:
            metrics[f"{name}/mean_over_{by}"] = _mean_accuracy(list(groups.values()), scale, count)
        metrics |= {f"pairs/{key}": number for key, number in _correlations(margins, scale).items()}
    return metrics


def _buckets(margins: Sequence[PairMargin]) -> list[str]:
    present = {margin.length_bucket for margin in margins}
    return [bucket for bucket in ("chosen_longer", "similar_length", "chosen_shorter") if bucket in present]


def _groups(margins: Sequence[PairMargin]) -> list[str]:
    return sorted({margin.group for margin in margins if margin.group is not None})


def _right(margins: Sequence[PairMargin], scale: str) -> Numbers:
    values = np.array([getattr(margin, scale) for margin in margins])
    return np.where(values == 0, 0.5, values > 0).astype(np.float64)


def _drawn(margins: Sequence[PairMargin], count: int) -> NDArray[np.int64]:
    """Return how often each pair is in each draw of prompts, [draw, pair]."""
    _, prompt = np.unique([margin.prompt for margin in margins], return_inverse=True)
    prompts = int(prompt.max()) + 1
    draws = np.random.default_rng(0).integers(prompts, size=(count, prompts))
    counts = np.stack([np.bincount(draw, minlength=prompts) for draw in draws])
    return np.asarray(counts[:, prompt], dtype=np.int64)


def _accuracy(margins: Sequence[PairMargin], scale: str, count: int) -> MetricEstimate:
    right, weights = _right(margins, scale), _drawn(margins, count)
    return percentile_estimate(float(right.mean()), weights @ right / weights.sum(-1), len(margins))


def _mean_accuracy(groups: Sequence[Sequence[PairMargin]], scale: str, count: int) -> MetricEstimate:
    """Return the mean of the groups' accuracies, in which each group counts the same."""
    value, draws = 0.0, np.zeros(count)
    for group in groups:
        right, weights = _right(group, scale), _drawn(group, count)
        value += float(right.mean()) / len(groups)
        draws += weights @ right / weights.sum(-1) / len(groups)
    return percentile_estimate(value, draws, sum(map(len, groups)))


def _correlations(margins: Sequence[PairMargin], scale: str) -> dict[str, MetricEstimate]:
    """Return the correlations of margins with score gaps; empty without enough scores that differ."""
    scored = [margin for margin in margins if margin.gap is not None]
    gaps = np.array([margin.gap for margin in scored], dtype=np.float64)
    values = np.array([getattr(margin, scale) for margin in scored], dtype=np.float64)
    if len(scored) < FEWEST_PAIRS or np.ptp(gaps) == 0 or np.ptp(values) == 0:
        return {}
    weights = _drawn(scored, _SLOW_RESAMPLES)
    return {
        f"correlation/{scale}/{name}": _correlation(statistic, values, gaps, weights)
        for name, statistic in _STATISTICS.items()
    }


def _correlation(
    statistic: Callable[[Numbers, Numbers], Any], values: Numbers, gaps: Numbers, weights: NDArray[np.int64]
) -> MetricEstimate:
    draws = []
    for weight in weights:
        first, second = np.repeat(values, weight), np.repeat(gaps, weight)
        if np.ptp(first) > 0 and np.ptp(second) > 0:
            draws.append(float(statistic(first, second)[0]))
    return percentile_estimate(float(statistic(values, gaps)[0]), np.array(draws), len(values))
