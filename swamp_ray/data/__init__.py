"""Datasets: by name or of your own, their splits, and batches on a device."""
