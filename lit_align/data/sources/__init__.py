"""Sources of raw rows: local files, saved data sets, and data sets on the hub."""
