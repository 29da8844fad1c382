"""Sweeps: a grid of settings and seeds, each cell a run of its own, over one data set and one reference cache."""
