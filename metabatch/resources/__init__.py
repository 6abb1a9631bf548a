"""Memory and CPU limits, kernel accounts of what was used, progress."""
