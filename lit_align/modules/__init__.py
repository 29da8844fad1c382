"""The Lightning modules, one per task."""

from typing import TypeAlias

from lit_align.modules.lit_module import LitModule
from lit_align.modules.online.module import LitOnline
from lit_align.modules.preference import LitPreference
from lit_align.modules.reward import LitReward
from lit_align.modules.schedule import Constant, Cosine, Linear, Schedule

Module: TypeAlias = LitPreference | LitOnline | LitReward
"""Any of the modules."""

__all__ = [
    "Constant",
    "Cosine",
    "Linear",
    "LitModule",
    "LitOnline",
    "LitPreference",
    "LitReward",
    "Module",
    "Schedule",
]
