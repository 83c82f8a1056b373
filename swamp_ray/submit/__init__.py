"""Runs and sweeps submitted to a cluster through Ray Jobs."""
