"""Evaluation: models are asked tasks, item by item, and their answers scored."""
