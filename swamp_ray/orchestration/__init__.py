"""Running rounds: in this process or on Ray. The only room that imports Ray."""
