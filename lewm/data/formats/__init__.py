"""Recordings as others keep them, one layout per file: each knows where things lie, and nothing of
what becomes of them."""
