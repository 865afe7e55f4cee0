"""Checks of the explanations, each of which could show that they are wrong."""
