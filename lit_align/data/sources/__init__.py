"""Where raw rows come from: local files, saved data sets, the hub."""
