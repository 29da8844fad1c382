"""Statistics of a data set: lengths, tables, figures."""
