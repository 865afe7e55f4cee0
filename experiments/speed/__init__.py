"""Measurements of the benchmark: the same network and training step in several toolkits, each in its own process."""
