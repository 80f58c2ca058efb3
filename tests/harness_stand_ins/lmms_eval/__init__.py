"""lmms-eval 0.7's interface as its adapter uses it, for machines without.

Only what is documented: the base of models, requests and results, and the registry that
finds models of other packages by their entry points.
"""
