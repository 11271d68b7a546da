"""What a plan is for, one objective per file."""
