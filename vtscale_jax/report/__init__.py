"""Plots and the HTML page of a run, drawn from its result files only.

`drawing` (the look of figures) and `pages` (templates, embedded images, sortable
tables) are for the pages of every rib.
"""
