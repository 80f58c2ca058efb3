"""Adapts a base to every M, evaluates each, fits, draws and reports."""
