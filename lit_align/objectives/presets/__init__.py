"""Presets: published names for choices of parts, with the hyperparameters and defaults of their papers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_align.objectives.presets.contrast import *
from lit_align.objectives.presets.divergence import *
from lit_align.objectives.presets.length import *
from lit_align.objectives.presets.likelihood import *
from lit_align.objectives.presets.matching import *
from lit_align.objectives.presets.registry import PRESETS, Group, Preset, preset
from lit_align.objectives.presets.response import *
from lit_align.objectives.presets.self_refinement import *
from lit_align.objectives.presets.wider import *

if not TYPE_CHECKING:  # type checkers see the functions themselves; to them a derived list would hide every name
    __all__ = sorted(PRESETS)
