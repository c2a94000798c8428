"""Checks and previews of data before training on it."""
