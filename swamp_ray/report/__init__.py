"""Figures of what pruning found."""
