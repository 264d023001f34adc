"""The published tables, with ours beside them."""
