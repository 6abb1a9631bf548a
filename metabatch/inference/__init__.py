"""Streaming prediction."""
