"""A run from its configuration: read it, prepare, train, evaluate, report."""
