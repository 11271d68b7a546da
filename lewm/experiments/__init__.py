"""Recipes and what carries them out."""
