"""Weights in and out: name tables, the authors' checkpoints, their goldens."""
