"""Pages of evidence: a sweep for each seed, numbers of every run, tables with intervals over seeds, and figures."""
