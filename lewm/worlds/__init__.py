"""Worlds, one per file: dynamics, rendering, goal, success, policies."""
