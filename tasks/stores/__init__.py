"""Stores: what records are read from and written to, behind one protocol (base.py)."""
