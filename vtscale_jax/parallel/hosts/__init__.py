"""Processes that train together: start, preflight, watch, stop."""
