"""Comparisons of PN-SAMP with published methods, benchmarks and trials; RESULTS.md has the results."""
