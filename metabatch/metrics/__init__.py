"""Metrics for weighted, rare classes, and bootstrap intervals by gene."""
