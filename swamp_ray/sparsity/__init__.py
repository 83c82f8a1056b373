"""Masks, what selects them, averages, and the compact form of a sparse network. Plain arguments; no files, no Ray."""
