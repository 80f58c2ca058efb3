"""The built-in data, Digit Pages, and what is trained on it."""
