"""Formats of raw rows: which columns hold the prompt and the responses."""
