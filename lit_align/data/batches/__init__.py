"""Batches of tokenized pairs: samplers, the data set, collation, loaders."""
