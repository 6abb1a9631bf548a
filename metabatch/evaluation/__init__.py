"""Honest evaluation of a run and its report."""
