"""Watching the cameras in a browser."""
