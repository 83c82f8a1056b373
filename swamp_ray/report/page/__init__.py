"""A report's page: its text, its tables, and the files beside it."""
