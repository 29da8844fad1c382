"""Batches of token ids: sampling, collation, loading."""
