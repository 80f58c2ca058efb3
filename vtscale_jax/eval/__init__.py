"""Evaluation: decoding, and scores of question families."""
