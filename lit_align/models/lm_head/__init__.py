"""The output projection: log-probabilities and fused losses without materialising the logits."""
