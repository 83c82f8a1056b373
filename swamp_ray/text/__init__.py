"""Words as people read them: tables, numbers, output that no terminal ends."""
