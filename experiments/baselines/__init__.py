"""The published methods that PN-SAMP is compared with, each in one file."""
