"""Submitting the stages of a run to a cluster."""
