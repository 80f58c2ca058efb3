"""Hugging Face's models: config.json and names of each family, both ways."""
