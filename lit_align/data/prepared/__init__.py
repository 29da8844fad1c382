"""Whole splits: read, checked, tokenized and cached before training."""
