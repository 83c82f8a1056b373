"""One run: everything before, during and after its rounds that needs no Ray."""
