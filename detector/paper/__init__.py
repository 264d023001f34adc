"""The published tables, next to our own figures."""
