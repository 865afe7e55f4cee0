"""What the benchmark measures: the same network and training step in several toolkits, one process for each turn."""
