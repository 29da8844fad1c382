"""What a run will need, before any weight is read: memory of each GPU, operations, time."""

from lit_align.plan.estimate import Estimate, estimate
from lit_align.plan.memory import Memory, Moment, Spread
from lit_align.plan.workload import largest_batch, uniform_batch, whole_responses

__all__ = ["Estimate", "Memory", "Moment", "Spread", "estimate", "largest_batch", "uniform_batch", "whole_responses"]
