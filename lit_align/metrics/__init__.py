"""Metrics: from outcomes to named numbers, exact over unequal batches and ranks."""

from lit_align.metrics.pairs import PairMetrics

__all__ = ["PairMetrics"]
