"""The notebooks, and the command that runs them and stores their outputs."""
