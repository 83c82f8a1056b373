"""Sweeps: settings as trials of Ray Tune."""
