"""On-policy training: a policy samples responses, a scorer rates them, an objective updates the policy."""
