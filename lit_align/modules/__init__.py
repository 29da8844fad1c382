"""The Lightning modules: they orchestrate, the mathematics is elsewhere."""

from lit_align.modules.preference import LitPreference
from lit_align.modules.schedule import Constant, Cosine, Linear, Schedule

__all__ = ["Constant", "Cosine", "Linear", "LitPreference", "Schedule"]
