"""The run directory: where every file lies, what is in it, and how it gets there safely."""
