"""The frozen reference: a second model, the policy with its adapter off, or log-probabilities on disk."""
