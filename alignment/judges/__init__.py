"""Judges: models that say which of two answers is better, and how far to trust them."""
