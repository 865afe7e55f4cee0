"""Configs: each file has `get_config()`; a variant imports `base` and overrides what differs."""
