"""A preset is a published name for a choice of parts, with the knobs and the defaults of its paper."""

from __future__ import annotations

from lit_align.objectives.presets.margins import (
    averaged_dpo,
    averaged_ipo,
    cdpo,
    direct_conditional_preference_matching,
    direct_preference_matching,
    discopop,
    dpo,
    dpo_positive,
    exo,
    ipo,
    ipo_sum,
    ld_dpo,
    r_dpo,
    robust_dpo,
    simpo,
    slic,
    sr_dpo,
    sr_ipo,
)
from lit_align.objectives.presets.responses import apo_down, apo_zero, bco, nca, sppo
from lit_align.objectives.presets.sums import cpo, mpo, orpo, rpo

__all__ = [
    "apo_down",
    "apo_zero",
    "averaged_dpo",
    "averaged_ipo",
    "bco",
    "cdpo",
    "cpo",
    "direct_conditional_preference_matching",
    "direct_preference_matching",
    "discopop",
    "dpo",
    "dpo_positive",
    "exo",
    "ipo",
    "ipo_sum",
    "ld_dpo",
    "mpo",
    "nca",
    "orpo",
    "r_dpo",
    "robust_dpo",
    "rpo",
    "simpo",
    "slic",
    "sppo",
    "sr_dpo",
    "sr_ipo",
]
