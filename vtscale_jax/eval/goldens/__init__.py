"""Cases that the original systems computed, checked against this package."""
