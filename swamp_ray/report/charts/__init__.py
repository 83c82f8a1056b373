"""A report's figures."""
