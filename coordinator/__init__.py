"""The planning side of chroma-sync: plans, verification, reports and the command line."""
