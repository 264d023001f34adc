"""Detectors as a service: requests wait in a bounded line, and threads compute them."""
