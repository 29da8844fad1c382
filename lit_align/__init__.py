"""Preference alignment of language models as free combinations of parts."""

__version__ = "0.1.0"
