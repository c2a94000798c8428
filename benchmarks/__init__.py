"""Time and memory of evle beside a textbook implementation of the same work: `python -m benchmarks --help`."""
