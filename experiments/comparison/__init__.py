"""Tables of several systems on the same nodules, and the paired statistics in them."""
