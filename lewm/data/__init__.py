"""Episodes: collected, written, read, converted from other layouts, split, and handed out as
windows."""
