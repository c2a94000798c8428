"""Readers of published data sets, from their official files."""
