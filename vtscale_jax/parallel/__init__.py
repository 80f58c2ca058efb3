"""Meshes and placement of arrays."""
