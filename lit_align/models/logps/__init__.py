"""Per-token log-probabilities of responses under a model, without padding or repeated prompts."""
