"""From scores to a law: fits, their uncertainty, tables, figures and a report."""
