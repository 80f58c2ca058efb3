"""Checkpoint files: tensors read and written one at a time, whatever the format."""
