"""The rounds of a run as a pure state machine, and the one vocabulary of its events and instructions."""
