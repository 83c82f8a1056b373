"""The user's own code: found, digested, imported from the digested bytes, and blamed for its errors."""
