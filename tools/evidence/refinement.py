"""The page on self-refinement: what the quality prompt knows before training, and what refinement by it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed
from lit_align.comparison.numbers import t_interval
from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from lit_align.data.text.render import QUALITY_PROMPT
from lit_align.evaluation.policy_measures import policy_rows
from lit_align.evaluation.win_rates import comparison
from lit_align.modules.prompt_check import PromptKnowledge
from lit_align.testbed.preferences import read_rows
from lit_align.testbed.truth import true_score
from lit_align.testbed.world import COMPLETE
from tools.evidence.forest import draw_forest
from tools.evidence.intervals import Comparison, compare, with_interval
from tools.evidence.sweeps import RunNumbers

PAIRS = 60
"""Pairs of the test split on which margins are measured."""
PROMPTS = {"the one it was taught": COMPLETE, "the paper's": QUALITY_PROMPT, "empty": ""}
Margins = NDArray[np.float64]


def measure(run: Path) -> dict[str, Any]:
    """Return what the samples of a run scored, and the plain and the prompted margins of its final policy."""
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text("utf-8").splitlines()]
    last = max(row["step"] for row in rows)
    start = {row["prompt"]: row for row in rows if row["step"] == 0}
    final = [row for row in rows if row["step"] == last]
    policy = AutoModelForCausalLM.from_pretrained(run / "policy").eval()
    plain, prompted = (
        (_difference(_log_probs(policy, prompt)) - _reference_margins(prompt)).tolist() for prompt in ("", COMPLETE)
    )
    return {
        "steps": {},
        "final": {
            "score": mean(float(row["policy_score"]) for row in final),
            "length": mean(float(row["policy_tokens"]) for row in final),
            "won": mean(comparison(row["policy_score"], start[row["prompt"]]["policy_score"]) for row in final),
            "plain": plain,
            "prompted": prompted,
        },
    }


def knowledge(prompt: str, count: int = 300) -> tuple[PromptKnowledge, PromptKnowledge]:
    """Return what a prompt tells the shipped policy about labels, and about which response is truly better."""
    shifts = _reference_margins(prompt, count) - _reference_margins("", count)
    gaps = np.array([_words(row["chosen"]) - _words(row["rejected"]) for row in _rows(count)], dtype=float)
    better = np.sign(true_gaps(count))
    decided = better != 0
    return PromptKnowledge(shifts, gaps, "test"), PromptKnowledge((shifts * better)[decided], gaps[decided], "test")


def likelihood_accuracy(prompt: str, count: int = 300) -> float:
    """Return how often the shipped policy finds the chosen response likelier under a prompt, per token."""
    return float((_reference_margins(prompt, count, by_token=True) > 0).mean())


def true_gaps(count: int = PAIRS) -> Margins:
    """Return the true score of chosen minus that of rejected."""
    return np.array(
        [true_score(row["prompt"], row["chosen"]) - true_score(row["prompt"], row["rejected"]) for row in _rows(count)]
    )


@cache
def _rows(count: int) -> list[dict[str, str]]:
    return read_rows(testbed.path("test.jsonl"))[:count]


@cache
def _reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(testbed.path("policy")).eval()


def _reference_margins(prompt: str, count: int = PAIRS, by_token: bool = False) -> Margins:
    return _difference(_reference_log_probs(prompt, count), by_token)


@cache
def _reference_log_probs(prompt: str, count: int) -> Margins:
    return _log_probs(_reference(), prompt, count)


def _words(text: str) -> int:
    return len(text.split())


def _difference(measured: Margins, by_token: bool = False) -> Margins:
    values = measured[:, 0] / measured[:, 1] if by_token else measured[:, 0]
    return values.reshape(-1, 2) @ (1.0, -1.0)


def _log_probs(policy: Any, prompt: str, count: int = PAIRS) -> Margins:
    """Return log π and the tokens of each response, chosen and rejected in turn, behind a prompt and the post."""
    tokenizer = AutoTokenizer.from_pretrained(testbed.path("policy"))
    before = f"{prompt} " if prompt else ""
    sequences = [
        (
            list(tokenizer(before + row["prompt"]).input_ids),
            [*tokenizer(row[side], add_special_tokens=False).input_ids, tokenizer.eos_token_id],
        )
        for row in _rows(count)
        for side in ("chosen", "rejected")
    ]
    measured = policy_rows(policy, None, sequences, batch_size=50)
    return np.array([(each.log_prob, len(ids)) for each, (_, ids) in zip(measured, sequences, strict=True)])


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def prompt_table() -> str:
    """Return what each prompt tells the shipped policy."""
    heads = ("quality prompt", "favours the chosen response", "favours the truly better", "r with the label")
    heads += ("r with length", "likelihood's own accuracy", "the run says")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, prompt in PROMPTS.items():
        labels, truth = knowledge(prompt)
        cells = [f"{100 * each.share:.0f} % ({100 * each.low:.0f}–{100 * each.high:.0f})"
                 for each in (labels.accuracy, truth.accuracy)]  # fmt: skip
        cells += [f"{labels.label_correlation:.2f}", f"{labels.length_correlation:.2f}"]
        cells += [f"{100 * likelihood_accuracy(prompt):.0f} %", "no warning" if labels.informs else "a warning"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def name_of(run: RunNumbers) -> str:
    """Return the name of a run's setting."""
    values = run.values
    objective = str(values["model.objective"])
    strength = values.get("model.objective.strength")
    noise = ", 30 % of verdicts reversed" if "noise" in str(values.get("data.train", "")) else ""
    if objective == "dpo":
        return f"dpo, β {values['model.objective.beta']:g}{noise}"
    if objective == "sr_dpo":
        naive = "" if values["data.quality_prompt"] == COMPLETE else ", naive (p empty)"
        return f"sr_dpo, λ {strength:g}{naive}{noise}"
    if objective == "sr_ipo":
        return "sr_ipo, λ 0.5 as derived" if float(strength or 0) > 1 else f"sr_ipo, λ {strength:g} as printed"
    return objective


def by_name(runs: Sequence[RunNumbers]) -> dict[str, list[RunNumbers]]:
    """Return the runs of each setting."""
    found: dict[str, list[RunNumbers]] = {}
    for run in sorted(runs, key=lambda run: (name_of(run).endswith("reversed"), name_of(run))):
        found.setdefault(name_of(run), []).append(run)
    return found


def accuracy(margins: Sequence[float], against: Margins | None = None) -> float:
    """Return the share of margins above 0, of the pairs that are decided, in the order of labels or of a gap."""
    signs = np.ones(len(margins)) if against is None else np.sign(against)
    return float((np.array(margins) * signs > 0)[signs != 0].mean())


def partial_correlation(first: Margins, second: Margins, given: Margins) -> float:
    """Return the correlation of two values after what a third one explains of each, linearly."""
    rest = [each - np.polyval(np.polyfit(given, each, 1), given) for each in (first, second)]
    return float(np.corrcoef(*rest)[0, 1])


def numbers(run: RunNumbers) -> dict[str, float]:
    """Return the columns of the table of a run."""
    gaps = true_gaps()
    plain, prompted = (np.array(run.final[name]) for name in ("plain", "prompted"))
    return {
        "score": run.final["score"],
        "length": run.final["length"],
        "win rate": 100 * run.final["won"],
        "m right of labels": 100 * accuracy(plain),
        "m_p right": 100 * accuracy(prompted),
        "m right of truth": 100 * accuracy(plain, gaps),
        "m_p right of truth": 100 * accuracy(prompted, gaps),
        "r(m, gap)": float(np.corrcoef(plain, gaps)[0, 1]),
        "r(m_p, gap)": float(np.corrcoef(prompted, gaps)[0, 1]),
        "r(m_p, m)": float(np.corrcoef(prompted, plain)[0, 1]),
        "partial r(m_p, gap)": partial_correlation(prompted, gaps, plain),
        "mean m": float(plain.mean()),
        "mean m_p": float(prompted.mean()),
    }


def control_of(name: str) -> str | None:
    """Return the unrefined objective that a refined one is compared with; None for those.

    With λ = 0.5 it is ``dpo`` at β 0.05, which ``sr_dpo`` is where the prompt tells nothing; others have their own β.

    >>> control_of("sr_dpo, λ 0.5"), control_of("sr_ipo, λ 0.5 as derived"), control_of("sr_dpo, λ 1")
    ('dpo, β 0.05', 'ipo_sum', 'dpo, β 0.1')
    """
    if not name.startswith("sr_"):
        return None
    if name.startswith("sr_ipo"):
        return "ipo_sum"
    _, _, noise = name.partition(", 30 %")
    return ("dpo, β 0.05" if "λ 0.5" in name else "dpo, β 0.1") + (f", 30 %{noise}" if noise else "")


def gains(runs: Sequence[RunNumbers]) -> dict[str, Comparison]:
    """Return the true score of each refined objective minus that of its control, paired by seed."""
    scores = {name: {run.seed: run.final["score"] for run in own} for name, own in by_name(runs).items()}
    differences = {}
    for name, own in scores.items():
        control = scores.get(control_of(name) or "", {})
        shared = sorted(own.keys() & control.keys())
        if shared:
            differences[name] = [own[seed] - control[seed] for seed in shared]
    return compare(differences)


def tables(runs: Sequence[RunNumbers]) -> dict[str, str]:
    """Return the tables of the page by the names of their marks."""
    return {"gains": gains_table(runs), "settings": table(runs)}


def gains_table(runs: Sequence[RunNumbers]) -> str:
    """Return the gains of refinement over seeds, corrected for their number."""
    lines = ["| refined | control | seeds | score − control's | p (Holm) |", "|---" * 5 + "|"]
    for name, each in gains(runs).items():
        lines.append(f"| {name} | {control_of(name)} | {each.difference.n} | {each} | {each.corrected} |")
    return "\n".join(lines)


def table(runs: Sequence[RunNumbers]) -> str:
    """Return the table of all settings, with intervals over seeds where there are several."""
    heads: list[str] = []
    rows = []
    for name, own in by_name(runs).items():
        columns = [numbers(run) for run in own]
        heads = ["objective", "seeds", *columns[0]]
        cells = []
        for column in columns[0]:
            digits = 0 if column.startswith("m ") or "right" in column or column == "win rate" else 2
            cells.append(with_interval(t_interval([each[column] for each in columns]), digits))
        rows.append(f"| {name} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *rows])


# ── the figure ──────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(runs: Sequence[RunNumbers], file: Path) -> None:
    """Draw what prompts know, score by objective, plain and prompted margins, and margins before and after."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(12, 9), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_prompts(axes[0, 0])
        named = by_name(runs)
        _draw_gains(axes[0, 1], runs)
        pooled = [run for name, own in named.items() if name == "sr_dpo, λ 0.5" for run in own]
        if pooled:
            plain = np.concatenate([run.final["plain"] for run in pooled])
            prompted = np.concatenate([run.final["prompted"] for run in pooled])
            _draw_margins(axes[1, 0], plain, prompted)
            bins = np.linspace(min(plain.min(), -1), max(plain.max(), 1), 30).tolist()
            axes[1, 1].hist(plain, bins, color=GUIDE, alpha=0.6, label="m, before refinement")
            refined = plain - 0.5 * prompted
            axes[1, 1].hist(refined, bins, color=CHOSEN, alpha=0.5, label="m − λ m_p, after it")
            axes[1, 1].axvline(0, color=GUIDE, linewidth=0.8)
            axes[1, 1].set(xlabel="margin (nats)", ylabel="pairs", title="sr_dpo, λ 0.5: refinement shrinks margins")
            axes[1, 1].legend(frameon=False)
        figure.savefig(file, dpi=120)


def _draw_prompts(axis: Any) -> None:
    for place, (name, prompt) in enumerate(PROMPTS.items()):
        for shift, label, colour, known in zip(
            (-0.1, 0.1), ("labels", "truth"), (REJECTED, CHOSEN), knowledge(prompt), strict=True
        ):
            share = known.accuracy
            bars = [[100 * (share.share - share.low)], [100 * (share.high - share.share)]]
            axis.errorbar(
                [place + shift], [100 * share.share], bars, marker="o", color=colour, label=None if place else label
            )
        axis.annotate(name, (place, 21), ha="center", fontsize=9)
    axis.axhline(50, color=GUIDE, linestyle=":")
    axis.set(ylim=(18, 100), xlim=(-0.5, 2.5), xticks=[], ylabel="prompt favours the better response (%)")
    axis.set_title("Before training: what does the prompt know?")
    axis.legend(frameon=False)


def _draw_gains(axis: Any, runs: Sequence[RunNumbers]) -> None:
    rows = {f"{name}\n− {control_of(name)}": (each,) for name, each in gains(runs).items()}
    draw_forest(axis, rows, ["over seeds"])
    seeds = max((each[0].difference.n for each in rows.values()), default=0)
    axis.set(xlabel="true score − that of the unrefined control, paired by seed")
    axis.set_title(f"After training, {seeds} seeds: right of 0, refinement helps")


def _draw_margins(axis: Any, plain: Margins, prompted: Margins) -> None:
    axis.scatter(plain, prompted, s=8, color=CHOSEN, alpha=0.6)
    ends = [float(plain.min()), float(plain.max())]
    axis.plot(ends, ends, color=GUIDE, linestyle=":")
    axis.set(xlabel="m (nats)", ylabel="m_p (nats)")
    axis.set_title(f"sr_dpo, λ 0.5: m_p follows m (r = {np.corrcoef(plain, prompted)[0, 1]:.2f})")
