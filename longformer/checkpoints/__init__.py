"""Checkpoints on disk and on the hub: files, weights, and the names of weights."""
