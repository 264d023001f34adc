"""Reads and writes Darknet models: cfg, weights, network, export."""

from detector.darknet.network import DarknetNetwork, build_darknet, load_darknet

__all__ = ["DarknetNetwork", "build_darknet", "load_darknet"]
