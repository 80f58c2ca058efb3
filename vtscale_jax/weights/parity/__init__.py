"""Our model against recorded states of the authors' code."""
