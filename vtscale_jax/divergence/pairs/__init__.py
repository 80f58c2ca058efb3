"""Preference pairs: two answers to one question, read, made, and as token ids."""
