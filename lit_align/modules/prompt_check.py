"""What the quality prompt tells a policy about the preferences, measured before the first step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_align.data import PreferenceData
from lit_align.models.logps.plain import packed_mask
from lit_align.models.narrow import evaluating
from lit_align.modules.log_probs import LogProbReaders
from lit_align.statistics import Interval, pearson_correlation, wilson

PROMPT_CHECK_PAIRS = 16, 128
"""Fewest and most pairs that are read, or all if there are fewer."""

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class PromptKnowledge:
    """How the quality prompt shifts the log-probabilities of chosen and rejected responses.

    The shift of a response of n tokens is [log π(y | p ⊕ x) - log π(y | x)] / n^power, as the objective averages, and
    that of a pair is the chosen response's minus the rejected one's. It has to be measured instead of the prompted
    margin m_p, which is 0 before the first step wherever the reference is a copy of the policy.

    Args:
        shifts: of the pairs, in nats, divided by the length to the power.
        length_gaps: tokens of the chosen response minus those of the rejected one.
        split: the pairs' split.
        length_power: of the objective: 0 for sums over tokens, 1 for means.

    >>> knowledge = PromptKnowledge(np.array([2.0, 1.0, 3.0, -1.0]), np.array([1.0, 2.0, 3.0, 4.0]), "validation")
    >>> knowledge.accuracy.share, round(knowledge.label_correlation, 4), knowledge.informs  # 5/4 over √(15/4)
    (0.75, 0.6455, False)
    """

    shifts: _Values
    length_gaps: _Values
    split: str = "train"
    length_power: float = 0.0

    @property
    def accuracy(self) -> Interval:
        """Share of pairs whose chosen response is favoured, ties counting one half, with its 95 % interval."""
        wins = float((self.shifts > 0).sum() + 0.5 * (self.shifts == 0).sum())
        return wilson(wins, len(self.shifts))

    @property
    def label_correlation(self) -> float:
        """Correlation of shift and label over both orders of every pair: the mean over the root mean square."""
        size = float(np.sqrt(np.mean(self.shifts**2))) if len(self.shifts) else 0.0
        return float(self.shifts.mean()) / size if size else 0.0

    @property
    def length_correlation(self) -> float:
        """Pearson's correlation of the shift with the difference in length; 0 where one of them is constant."""
        return pearson_correlation(self.shifts, self.length_gaps) or 0.0

    @property
    def informs(self) -> bool:
        """Whether the prompt favours chosen responses more often than by chance."""
        return self.accuracy.low > 0.5

    @property
    def line(self) -> str:
        """One line about it."""
        share = self.accuracy
        line = (
            f"quality prompt: on {len(self.shifts)} pairs of data.{self.split}, by {self._averaging}, it favours the "
            "chosen response in "
            f"{100 * share.share:.0f} % (95 % interval {100 * share.low:.0f} to {100 * share.high:.0f}); correlation "
            f"with the label {self.label_correlation:.2f}, with the difference in length {self.length_correlation:.2f}"
        )
        if self.informs:
            return line
        what = "favours the rejected one" if share.high < 0.5 else "is not shown to know which response is better"
        return (
            f"{line}. The policy, asked by this prompt, {what}: refinement can then do no more than a smaller β; "
            f"take another data.quality_prompt, or an objective without refinement. {self._reach}"
        )

    @property
    def _averaging(self) -> str:
        named = {0.0: "sums over tokens", 1.0: "means over tokens"}
        return named.get(self.length_power, f"sums divided by the length to the power of {self.length_power:g}")

    @property
    def _reach(self) -> str:
        """How good a prompt must be for this many pairs to show it."""
        count = len(self.shifts)
        enough = next((wins for wins in range(count + 1) if wilson(wins, count).low > 0.5), None)
        least = "no share at all" if enough is None else f"a share of {100 * enough / count:.0f} % or more"
        return f"This rests on {count} pairs, which can show {least}"

    @property
    def values(self) -> dict[str, Tensor]:
        """Return the numbers by the names of their metrics."""
        share = self.accuracy
        numbers = {
            "accuracy": share.share,
            "accuracy/low": share.low,
            "accuracy/high": share.high,
            "label_correlation": self.label_correlation,
            "length_correlation": self.length_correlation,
        }
        return {f"quality_prompt/{name}": torch.tensor(number) for name, number in numbers.items()}


@torch.no_grad()
def measure_prompt(
    policy: nn.Module,
    readers: LogProbReaders,
    data: PreferenceData,
    device: torch.device,
    steps: int,
    length_power: float = 0.0,
) -> PromptKnowledge | None:
    """Read some pairs with and without the quality prompt; None if no row has two responses.

    Every process reads the same pairs, those of the validation split where there is one, and the state of the random
    generators stays as it is.

    Args:
        policy: the trained model.
        readers: read it.
        data: of the run, with prompted pairs.
        device: of the policy.
        steps: optimizer steps of the run; a pair is read for every two of them, so that short runs start soon.
        length_power: the power of a response's length by which the objective divides its sums.
    """
    least, most = PROMPT_CHECK_PAIRS
    name = "validation" if "validation" in data.splits else "train"
    complete = np.flatnonzero((data.splits[name].store.lengths > 0).all(-1))
    if not len(complete):
        return None
    places = (
        np.linspace(0, len(complete) - 1, min(max(least, min(steps // 2, most)), len(complete))).round().astype(int)
    )
    shifts, gaps = [], []
    with torch.random.fork_rng(devices=[]), evaluating(policy):
        for loaded in data.rows_dataloader(name, complete[places].tolist()):
            batch = loaded.to(device)
            assert batch.prompted is not None
            plain, prompted = (readers.read(policy, each) for each in (batch, batch.prompted))
            shift = torch.where(packed_mask(batch), prompted - plain, 0.0).double().sum(-1)
            shift = shift / batch.lengths**length_power
            shifts.append(shift[:, 0] - shift[:, 1])
            gaps.append(batch.lengths[:, 0] - batch.lengths[:, 1])
    shifted, longer = (torch.cat(parts).double().cpu().numpy() for parts in (shifts, gaps))
    return PromptKnowledge(shifted, longer, name, length_power)
