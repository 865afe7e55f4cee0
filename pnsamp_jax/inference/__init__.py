"""Networks asked about the nodules of a CT."""
