"""Questions asked of a trained model, one per file."""
