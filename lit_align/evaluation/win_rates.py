r"""Win rates against a baseline, plain and length-controlled.

The length-controlled win rate is that of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475). Of each model, the
preference of the judge is explained by a logistic regression

$$\operatorname{logit} P = \theta + \phi \tanh(\Delta / s) + \psi\,\gamma_x$$

with the difference of lengths Δ in characters, its standard deviation s over the prompts, and the difficulty γ of an
instruction; the win rate is the mean of P with the term of the length left out. Two things of the published method
need data that belong to its benchmark, and are estimated from the evaluation itself:

* γ is estimated jointly over all models of the evaluation, where there are at least five; with fewer it is left out.
* φ is regularised. The published method adds judgements of the baseline against longer and shorter versions of its
  own answers, with weight λ = 0.2: they tell what the judge makes of length alone, and hold φ where a model's lengths
  hardly overlap with the baseline's. Here two pseudo-judgements per model stand for them. Their preference is that of
  the mean φ of all models, each weighted by how exactly it is known and by how far its lengths overlap. A single model
  is not regularised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lit_align.evaluation.intervals import RESAMPLES, PromptCells, bootstrap, bootstrap_mean
from lit_align.evaluation.record import MetricEstimate

BASELINE_WEIGHT = 0.2
"""Weight λ of the pseudo-judgements, as a share of the model's own judgements; that of the published method."""
AT = float(np.tanh(1.0))
"""Length term of the pseudo-judgements: a difference of one standard deviation."""
FEWEST_MODELS = 5
"""Models from which difficulties of instructions are estimated."""
OVERLAP_NOTE = "its lengths hardly overlap with the baseline's"
HARDLY = 0.1
"""Overlap of lengths below which the length-controlled win rate is an extrapolation."""
_FREE = 1e6
_UNPENALIZED = 10.0
LC_RESAMPLES = 200
Vector: TypeAlias = NDArray[np.float64]


def comparison(score: float, baseline: float, margin: float = 0.0) -> float:
    """Return 1 if the first score is higher, 0 if it is lower, and 0.5 if they differ by no more than a margin.

    >>> comparison(2.0, 1.0), comparison(1.0, 1.0), comparison(1.0, 1.2, margin=0.5)
    (1.0, 0.5, 0.5)
    """
    difference = score - baseline
    return 0.5 if abs(difference) <= margin else float(difference > 0)


def outcome_metrics(comparisons: PromptCells, count: int = RESAMPLES) -> dict[str, MetricEstimate]:
    """Return the shares of won, tied and lost comparisons, and the win rate, in which ties count one half.

    Args:
        comparisons: 1 won, 0 lost, [prompt, seed]; between, the judge was undecided. Exactly 0.5 is a tie.
        count: draws of the bootstrap.
    """
    shares = {"win": comparisons > 0.5, "tie": comparisons == 0.5, "lose": comparisons < 0.5}
    metrics = {"win_rate": bootstrap_mean(comparisons, count)}
    return metrics | {f"win_rate/{name}": bootstrap_mean(cells.astype(float), count) for name, cells in shares.items()}


def length_agreement(comparisons: PromptCells, longer: PromptCells, count: int = RESAMPLES) -> MetricEstimate | None:
    """Return the share of decided comparisons that the longer response wins; None if no pair is decided.

    Args:
        comparisons: see `outcome_metrics`.
        longer: length of the model's response minus that of the baseline's; pairs of equal length are left out.
        count: draws of the bootstrap.
    """
    both = np.stack([comparisons, longer], axis=-1)

    def share(rows: PromptCells) -> float:
        decided = rows[(rows[:, 0] != 0.5) & (rows[:, 1] != 0)]
        return float(((decided[:, 0] > 0.5) == (decided[:, 1] > 0)).mean()) if len(decided) else np.nan

    if np.isnan(share(both.reshape(-1, 2))):
        return None
    return bootstrap(both, lambda rows: share(rows) if not np.isnan(share(rows)) else 0.5, count)


@dataclass(frozen=True)
class Judgements:
    """Comparisons of one model with the baseline.

    Args:
        prompt: which prompt each is on.
        preference: 1 if the model's response is better, 0 if the baseline's is.
        longer: length of the model's response minus that of the baseline's, in characters.
    """

    prompt: NDArray[np.int64]
    preference: Vector
    longer: Vector

    @property
    def length_term(self) -> Vector:
        """The tanh of the difference of lengths in standard deviations; 0 if they all differ by the same."""
        spread = float(np.std(self.longer, ddof=1)) if len(self.longer) > 1 else 0.0
        return np.tanh(self.longer / spread) if spread > 0 else np.zeros_like(self.longer)

    @property
    def overlap(self) -> float:
        """How far the lengths overlap: 1 if half of the responses are longer than the baseline's, 0 if all or none.

        Responses of equal length count half on either side.
        """
        same = float((self.longer == 0).mean()) / 2
        return 2 * min(float((self.longer > 0).mean()) + same, float((self.longer < 0).mean()) + same)

    def rows(self, places: NDArray[np.int64]) -> Judgements:
        """Return some of the judgements."""
        return Judgements(self.prompt[places], self.preference[places], self.longer[places])


@dataclass(frozen=True)
class LengthModel:
    """The parts of the fit that models share.

    Args:
        difficulty: γ of each prompt; None where it is left out.
        length_effect: mean φ, towards which that of each model is drawn.
        weight: λ, 0 for a single model.
    """

    difficulty: Mapping[int, float] | None
    length_effect: float
    weight: float

    def win_rate(self, judgements: Judgements) -> float:
        """Return the length-controlled win rate of a model."""
        ability, _, slope = self.coefficients(judgements)
        return float(_logistic(ability + slope * self._difficulties(judgements)).mean())

    def coefficients(self, judgements: Judgements) -> tuple[float, float, float]:
        """Return θ, φ and ψ of a model."""
        term, difficulty = judgements.length_term, self._difficulties(judgements)
        columns = [np.ones_like(term), term]
        columns += [] if self.difficulty is None else [difficulty]
        design = np.stack(columns, axis=1)
        preference, weight = judgements.preference, np.ones_like(term)
        if self.weight:
            pseudo = np.zeros((2, design.shape[1]))
            pseudo[:, 1] = (AT, -AT)
            design = np.concatenate([design, pseudo])
            preference = np.concatenate([preference, _logistic(self.length_effect * pseudo[:, 1])])
            weight = np.concatenate([weight, np.full(2, self.weight * len(term) / 2)])
        fitted = fit_logistic(design, preference, weight).tolist()
        return fitted[0], fitted[1], fitted[2] if len(fitted) > 2 else 0.0

    def _difficulties(self, judgements: Judgements) -> Vector:
        known = self.difficulty or {}
        return np.array([known.get(int(prompt), 0.0) for prompt in judgements.prompt])


def fit_length_model(models: Sequence[Judgements]) -> LengthModel:
    """Estimate what models share: difficulties of instructions, and the mean effect of length."""
    difficulty = joint_difficulty(models) if len(models) >= FEWEST_MODELS else None
    free = LengthModel(difficulty, 0.0, 0.0)
    if len(models) < 2:
        return free
    effects = [free.coefficients(model)[1] for model in models]
    weights = [_information(free, model) * model.overlap for model in models]
    total = sum(weights)
    mean = sum(w * effect for w, effect in zip(weights, effects, strict=True)) / total if total > 0 else 0.0
    return LengthModel(difficulty, mean, BASELINE_WEIGHT)


def _information(fit: LengthModel, judgements: Judgements) -> float:
    """Return the information of a model's judgements on φ, the inverse of its variance."""
    ability, effect, slope = fit.coefficients(judgements)
    term = judgements.length_term
    p = _logistic(ability + effect * term + slope * fit._difficulties(judgements))
    weight = p * (1 - p)
    return float((weight * (term - np.average(term, weights=np.maximum(weight, 1e-12))) ** 2).sum())


def joint_difficulty(models: Sequence[Judgements]) -> dict[int, float]:
    """Estimate γ of each prompt: a logistic regression over all models, with θ and φ of each and γ ~ N(0, 1)."""
    sparse: Any = import_module("scipy.sparse")
    prompts = np.unique(np.concatenate([model.prompt for model in models]))
    owner = np.concatenate([np.full(len(model.prompt), place) for place, model in enumerate(models)])
    term = np.concatenate([model.length_term for model in models])
    column = np.searchsorted(prompts, np.concatenate([model.prompt for model in models]))
    rows = np.arange(len(owner))
    size = (len(rows), len(models))
    parts = [  # a column of 10 instead of 1 has a hundredth of the penalty
        sparse.csr_matrix((np.full(len(rows), _UNPENALIZED), (rows, owner)), size),
        sparse.csr_matrix((_UNPENALIZED * term, (rows, owner)), size),
        sparse.csr_matrix((np.ones(len(rows)), (rows, column)), (len(rows), len(prompts))),
    ]
    preference = np.concatenate([model.preference for model in models])
    fitted = fit_logistic(sparse.hstack(parts).tocsr(), preference, np.ones(len(rows)), penalty=1.0)
    return dict(zip(prompts.tolist(), fitted[-len(prompts) :].tolist(), strict=True))


def fit_logistic(design: Any, preference: Vector, weight: Vector, penalty: float = 1 / _FREE) -> Vector:
    """Fit a logistic regression without intercept to preferences between 0 and 1.

    Args:
        design: [row, column], dense or sparse.
        preference: of each row; a row counts as won by this share and as lost by the rest.
        weight: of each row.
        penalty: of half the squared length of the coefficients.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; names the extra.
    """
    if find_spec("sklearn") is None:
        raise ModuleNotFoundError(
            "length-controlled win rates are fitted with scikit-learn: pip install 'lit-align[eval]'"
        )
    linear: Any = import_module("sklearn.linear_model")
    stack = np.concatenate if isinstance(design, np.ndarray) else import_module("scipy.sparse").vstack
    labels = np.repeat([1, 0], len(preference))
    weights = np.concatenate([preference * weight, (1 - preference) * weight])
    used = weights > 0
    if len(np.unique(labels[used])) < 2:  # all won or all lost: half a judgement of the other kind
        weights, used = weights + 0.5 / len(preference), np.ones_like(used)
    regression = linear.LogisticRegression(C=1 / penalty, fit_intercept=False, max_iter=2000, tol=1e-6)
    regression.fit(stack([design, design])[used], labels[used], sample_weight=weights[used])
    fitted: Vector = regression.coef_[0]
    return fitted


def _logistic(values: Any) -> Vector:
    return np.exp(-np.logaddexp(0.0, -np.asarray(values, dtype=np.float64)))


def length_controlled(
    comparisons: Mapping[str, PromptCells], longer: Mapping[str, PromptCells], count: int = LC_RESAMPLES
) -> tuple[dict[str, MetricEstimate], list[str]]:
    """Return the length-controlled win rate of each model with its interval, and what to warn of.

    The interval draws prompts and seeds, and fits θ, φ and ψ of the model anew; what models share is kept.

    Args:
        comparisons: of each model with the baseline, [prompt, seed].
        longer: length of the model's response minus the baseline's, in characters.
        count: draws of the bootstrap.
    """
    cells = {name: np.stack([comparisons[name], longer[name]], axis=-1) for name in comparisons}
    judgements = {name: _with_prompts(values) for name, values in cells.items()}
    shared = fit_length_model(list(judgements.values()))
    metrics: dict[str, MetricEstimate] = {}
    notes = []
    for name, values in cells.items():
        numbered = np.concatenate([values, _places(values)], axis=-1)
        metrics[name] = bootstrap(numbered, lambda rows: shared.win_rate(_judgements(rows)), count)
        overlap = judgements[name].overlap
        if overlap < HARDLY:
            notes.append(
                f"{name}: {OVERLAP_NOTE} ({overlap / 2:.1%} of the pairs lie on the "
                "other side), so its length-controlled win rate is an extrapolation"
            )
    return metrics, notes


def _places(values: PromptCells) -> PromptCells:
    prompts, seeds, _ = values.shape
    return np.broadcast_to(np.arange(prompts, dtype=np.float64)[:, None, None], (prompts, seeds, 1))


def _with_prompts(values: PromptCells) -> Judgements:
    return _judgements(np.concatenate([values, _places(values)], axis=-1).reshape(-1, 3))


def _judgements(rows: PromptCells) -> Judgements:
    return Judgements(rows[:, 2].astype(np.int64), rows[:, 0], rows[:, 1])
