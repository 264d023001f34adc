"""Public models by name: a table of where they are, and how they get here."""
