"""Several particles that one process trains at once."""
