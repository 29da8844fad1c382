"""Numbers of an evaluation computed another way: Newton's method instead of scikit-learn, loops over draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

Vector = NDArray[np.float64]
AT = np.tanh(1.0)
RIDGE = 1e-6


def logistic(design: Vector, wins: Vector, weight: Vector, ridge: Vector) -> Vector:
    """Minimize Σ w (log(1 + e^z) - y z) + ½ Σ r b² by Newton's method."""
    b = np.zeros(design.shape[1])
    for _ in range(100):
        p = expit(design @ b)
        gradient = design.T @ (weight * (p - wins)) + ridge * b
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        b = b - step / max(1.0, float(np.abs(step).max()))
    return b


def length_term(longer: Vector) -> Vector:
    return np.tanh(longer / np.std(longer, ddof=1))


def fit(term: Vector, wins: Vector, difficulty: Vector | None = None, effect: float | None = None) -> Vector:
    """Return θ, φ and ψ of a model; with two pseudo-judgements of a common effect of length, unless there is none."""
    columns = [np.ones_like(term), term, *([] if difficulty is None else [difficulty])]
    design, weight = np.stack(columns, axis=1), np.ones(len(term))
    if effect is not None:
        pseudo = np.zeros((2, design.shape[1]))
        pseudo[:, 1] = AT, -AT
        design, weight = np.concatenate([design, pseudo]), np.concatenate([weight, np.full(2, 0.1 * len(term))])
        wins = np.concatenate([wins, expit([effect * AT, -effect * AT])])
    elif len(set(wins)) == 1 and wins[0] in (0, 1):  # all won or all lost: half a judgement of each kind besides
        share = 0.5 / len(wins)
        wins, weight = (wins + share) / (1 + 2 * share), np.full(len(wins), 1 + 2 * share)
    return logistic(design, wins, weight, np.full(design.shape[1], RIDGE))


def win_rate(term: Vector, wins: Vector, difficulty: Vector | None = None, effect: float | None = None) -> float:
    """Return the mean chance of winning at equal lengths."""
    b = fit(term, wins, difficulty, effect)
    return float(np.mean(expit(b[0] + (0.0 if difficulty is None else b[2] * difficulty))))


def difficulties(terms: Sequence[Vector], wins: Sequence[Vector]) -> Vector:
    """Return γ of each prompt, of models that have all answered each prompt once, in the same order."""
    models, prompts = len(terms), len(terms[0])
    design = np.zeros((models * prompts, 2 * models + prompts))
    for number, term in enumerate(terms):
        rows = slice(number * prompts, (number + 1) * prompts)
        design[rows, number] = 1
        design[rows, models + number] = term
        design[rows, 2 * models :] = np.eye(prompts)
    ridge = np.concatenate([np.full(2 * models, 0.01), np.ones(prompts)])
    return logistic(design, np.concatenate(wins), np.ones(len(design)), ridge)[2 * models :]


def mean_effect(terms: Sequence[Vector], wins: Sequence[Vector], difficulty: Vector | None) -> float:
    """Return the mean of φ, each weighted by its information and by the overlap of the lengths."""
    effects, weights = [], []
    for term, won in zip(terms, wins, strict=True):
        b = fit(term, won, difficulty)
        p = expit(b[0] + b[1] * term + (0.0 if difficulty is None else b[2] * difficulty))
        w = p * (1 - p)
        centre = (w * term).sum() / w.sum()
        shorter, longer = np.mean((term < 0) + (term == 0) / 2), np.mean((term > 0) + (term == 0) / 2)
        effects.append(b[1])
        weights.append((w * (term - centre) ** 2).sum() * 2 * min(shorter, longer))
    return float(np.dot(effects, weights) / np.sum(weights))


def interval(statistic: Callable[[list[Any]], float], draws: Sequence[list[Any]]) -> tuple[float, float]:
    """Return the ends of a percentile interval over draws of rows."""
    low, high = np.percentile([statistic(rows) for rows in draws], [2.5, 97.5])
    return float(low), float(high)


@torch.no_grad()
def log_probs(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    """Return the log-probabilities of every id at each token of a response, [token, id]."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : len(prompt) + len(response) - 1]


def log_prob(model: torch.nn.Module, prompt: Sequence[int], response: Sequence[int]) -> float:
    rows = log_probs(model, prompt, response)
    return sum(float(rows[place, token]) for place, token in enumerate(response))
