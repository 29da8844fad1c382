"""Estimates of what a run will need, before any weight is read: memory of each GPU, operations, time."""

from lit_align.plan.estimate import Estimate, estimate
from lit_align.plan.memory import Memory, Parallelism, Phase
from lit_align.plan.workload import largest_batch, rollout_batch, uniform_batch

__all__ = ["Estimate", "Memory", "Parallelism", "Phase", "estimate", "largest_batch", "rollout_batch", "uniform_batch"]
