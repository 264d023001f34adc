"""From a model's name to boxes."""
