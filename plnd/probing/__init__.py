"""A proof for any model, before a row exists: a tiny twin of its configuration, held to brute force."""
