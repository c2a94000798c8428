"""Readers of the user's own data: folders, tables, shards, saved data sets."""
