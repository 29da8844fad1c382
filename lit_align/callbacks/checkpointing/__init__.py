"""Checkpoints: written whole or not at all, verified when read, and only resumed by the run that they belong to."""
