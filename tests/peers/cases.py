"""Settings of TRL with the objectives that they correspond to, and conversions where they differ on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lit_align.objectives import (
    SFT,
    Alpha,
    Entropy,
    ForwardKL,
    Hinge,
    JensenShannon,
    Logistic,
    Mean,
    Objective,
    OddsRatio,
    PreferenceObjective,
    Robust,
    Square,
    Term,
    WeightedSum,
    alpha_po,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    averaged_dpo,
    bco_unshifted,
    direct_preference_matching,
    discopop,
    dpo,
    exo,
    ipo,
    kto,
    ld_dpo,
    nca,
    robust_dpo,
    rso,
    simpo,
    sppo,
    wpo,
)

from .ours import Ours, mean, per_token


@dataclass(frozen=True)
class Case:
    """A setting of one of TRL's trainers, and the objective that it is compared with.

    Args:
        name: what the line is called.
        objective: ours.
        options: theirs.
        trainer: whose.
        total: from the losses of pairs to that of the batch; anything but the mean is a difference on purpose.
        note: the difference, in a few words.
    """

    name: str
    objective: Objective
    options: Mapping[str, Any] = field(default_factory=dict)
    trainer: str = "DPO"
    total: Callable[[Ours], Tensor] = mean
    note: str = ""


BETA = 0.3
PER_TOKEN = "theirs is the mean over all chosen tokens of the batch: Σ n_i ours_i / Σ n_i"


def _tokens_alike(ours: Ours) -> Tensor:
    return per_token(ours.objective(ours.logps).loss, ours.logps)


def _beside_likelihood(weight: float) -> Callable[[Ours], Tensor]:
    """Return the mean loss of the objective plus the weighted likelihood per token."""
    return lambda ours: mean(ours) + weight * per_token(SFT()(ours.logps).loss, ours.logps)


def _odds_beside_all_tokens(strength: float) -> Callable[[Ours], Tensor]:
    return lambda ours: strength * mean(ours) + per_token(SFT()(ours.with_prompt).loss, ours.with_prompt)


def dpo_cases() -> list[Case]:
    """Iterate over the loss types of the DPO trainer, its length normalisation, and its mixtures."""

    def case(kind: str, objective: Objective, name: str = "", **options: Any) -> Case:
        return Case(name or kind, objective, {"loss_type": [kind], "beta": BETA, **options})

    both = WeightedSum((Term("preference", dpo(BETA), 0.8), Term("quality", bco_unshifted(BETA), 0.2)))
    mixture = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 0.7], "beta": BETA}
    return [
        case("sigmoid", dpo(BETA)),
        case("hinge", rso(BETA)),
        case("ipo", ipo(BETA)),
        case("exo_pair", exo(BETA, 0.02), label_smoothing=0.02),
        case("nca_pair", nca(BETA)),
        case("robust", robust_dpo(BETA, 0.15), label_smoothing=0.15),
        case("bco_pair", bco_unshifted(BETA)),
        case("sppo_hard", sppo(BETA)),
        case("apo_zero", apo_zero(BETA)),
        case("apo_down", apo_down(BETA)),
        case("discopop", discopop(BETA, 0.4), discopop_tau=0.4),
        case("sigmoid_norm", averaged_dpo(5.0), beta=5.0),
        case("aot", aot(BETA)),
        case("aot", aot(BETA, 0.1), name="aot, label_smoothing", label_smoothing=0.1),
        case("aot_unpaired", aot_unpaired(BETA)),
        case("sigmoid", wpo(BETA), name="sigmoid, use_weighting", use_weighting=True),
        Case("sft", SFT(), {"loss_type": ["sft"]}, total=_tokens_alike, note=PER_TOKEN),
        case("sigmoid", ld_dpo(BETA, 0.4), name="sigmoid, ld_alpha", ld_alpha=0.4),
        Case("MPO: sigmoid, bco_pair, sft", both, mixture, total=_beside_likelihood(0.7), note=f"sft: {PER_TOKEN}"),
    ]


def divergence_cases() -> list[Case]:
    """Iterate over the f-divergences of the DPO trainer, with three of its losses."""
    settings: list[tuple[str, Any, dict[str, Any]]] = [
        ("forward_kl", ForwardKL(), {}),
        ("js_divergence", JensenShannon(), {}),
        ("alpha_divergence", Alpha(0.3), {"f_alpha_divergence_coef": 0.3}),
    ]
    losses: list[tuple[str, Any, dict[str, Any]]] = [
        ("sigmoid", Logistic(BETA), {}),
        ("hinge", Hinge(BETA), {}),
        ("robust", Robust(BETA, 0.15), {"label_smoothing": 0.15}),
    ]
    return [
        Case(
            f"{loss}, {name}",
            PreferenceObjective(contrast, divergence=divergence),
            {"loss_type": [loss], "beta": BETA, "f_divergence_type": name, **smoothing, **order},
        )
        for name, divergence, order in settings
        for loss, contrast, smoothing in losses
    ]


def reference_free_cases() -> list[Case]:
    """Iterate over the trainers without a reference: CPO and its SimPO, ORPO, TPO without its gold response."""

    def case(kind: str, objective: Objective, trainer: str = "CPO", name: str = "", **options: Any) -> Case:
        return Case(name or kind, objective, {"loss_type": kind, "beta": BETA, **options}, trainer)

    preference = direct_preference_matching(BETA)
    beside = {"loss_type": "sigmoid", "beta": BETA, "cpo_alpha": 0.7}
    bent = {"beta": 2.0, "simpo_gamma": 0.7, "alpha": 0.4}
    noisy = PreferenceObjective(Logistic(2.0, 0.1), averaging=Mean(), regularizer=Entropy())
    return [
        case("sigmoid", preference, cpo_alpha=0.0),
        case("hinge", PreferenceObjective(Hinge(BETA), regularizer=Entropy()), cpo_alpha=0.0),
        case("ipo", PreferenceObjective(Square(BETA), averaging=Mean(), regularizer=Entropy()), cpo_alpha=0.0),
        case("simpo", simpo(2.0, 0.7), cpo_alpha=0.0, beta=2.0, simpo_gamma=0.7),
        case("simpo", alpha_po(2.0, 0.7, 0.4), name="simpo, alpha", cpo_alpha=0.0, **bent),
        case(
            "simpo",
            noisy,
            name="simpo, label_smoothing",
            cpo_alpha=0.0,
            beta=2.0,
            simpo_gamma=0.0,
            label_smoothing=0.1,
        ),
        Case("sigmoid, cpo_alpha", preference, beside, "CPO", _beside_likelihood(0.7), f"NLL: {PER_TOKEN}"),
        Case(
            *("orpo", OddsRatio(), {"beta": BETA}, "ORPO", _odds_beside_all_tokens(BETA)),
            note="their NLL also scores the prompt, one mean over all tokens of the batch",
        ),
        case("sigmoid", preference, "TPO", tpo_alpha=0.0),
        case("tpo-l", simpo(2.0, 0.7), "TPO", tpo_alpha=0.0, beta=2.0, tpo_l_gamma=0.7),
    ]


def unpaired_cases() -> list[Case]:
    """Iterate over the KTO trainer on unpaired rows; its mean is over twice as many rows as there are pairs."""
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    note = "theirs is the mean over 2 N responses, ours over N pairs of the sum of both sides: ours / 2"
    shared: dict[str, Any] = {"trainer": "KTO", "total": lambda ours: mean(ours) / 2, "note": note}
    return [
        Case("kto", kto(BETA), {"beta": BETA}, **shared),
        Case("kto, weights", kto(BETA, 1.3, 0.8), {"beta": BETA, **weights}, **shared),
        Case("apo_zero_unpaired", apo_zero(BETA), {"beta": BETA, "loss_type": "apo_zero_unpaired"}, **shared),
    ]


def cases() -> list[Case]:
    """Iterate over all lines of the table."""
    return [*dpo_cases(), *divergence_cases(), *reference_free_cases(), *unpaired_cases()]
