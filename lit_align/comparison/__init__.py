"""Runs side by side: what ``python -m lit_align compare`` reads, computes and shows."""
