"""A run's folder: its checkpoints and heads, the run opened for use, analyses kept in it, published
weights."""
