"""Tables that compare systems on the same nodules, and the paired statistics in them."""
