"""How fast detectors run and train on this machine."""
