"""Models, requests and results."""
