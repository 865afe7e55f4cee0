"""What is measured against PN-SAMP, and the results."""
