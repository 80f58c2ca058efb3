"""Plots and the HTML page of a run, drawn from its result files only."""
