"""Evaluation of trained models: responses, judges, win rates with intervals, preference sets, benchmarks."""
