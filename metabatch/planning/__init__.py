"""Deciding what to train where: memory law, gene allocation, holdout, strategies."""
