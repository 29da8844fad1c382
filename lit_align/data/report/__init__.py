"""Reports on prepared splits: lengths, tables, figures."""
