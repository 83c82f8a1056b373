"""Configs of runs and sweeps: their options, how they are read, and what they must not say together."""
