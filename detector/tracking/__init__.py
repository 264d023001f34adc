"""Identities over time: a tracker driven by seconds, counts at lines and in zones, and the measures of the field."""
