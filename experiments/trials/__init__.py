"""Long trials of robustness: each prints how many trials there were, and which failed."""
