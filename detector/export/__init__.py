"""Exports of detectors to other formats; each is run and compared before it is kept."""
