"""Read CT files as HU volumes with their geometry."""
