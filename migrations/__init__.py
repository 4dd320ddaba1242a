"""Numbered SQL, applied once each, in order, by tasks/schema.py."""
