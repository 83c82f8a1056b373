"""The user's code: what it consists of, that it runs as it is digested, and that all processes have the same."""
