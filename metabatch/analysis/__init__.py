"""What a scientist needs before trusting a model: each analysis on its own, bounded in memory, and honest."""
