"""Flat: exact search by looking at every allowed row."""
