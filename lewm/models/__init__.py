"""World models, one method per file."""
