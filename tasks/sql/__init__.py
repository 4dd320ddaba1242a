"""The queries, one named block each, read by tasks/database.py."""
