"""Searches over action sequences, one per file."""
