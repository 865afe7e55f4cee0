"""Configs: each file has a `get_config()`; a variant imports `base` and overrides the fields that differ."""
