"""CT files become volumes in HU with their geometry."""
