"""Scores of the paper's benchmarks, computed as VLMEvalKit computes them.

    from vtscale_jax.eval.scoring.score import score
    score("POPE", rows, predictions, "paper").scores

One file per family of answers gives the verdict on each item; the same file turns
verdicts into the benchmark's numbers. Nothing here asks a judge, opens a network
connection or evaluates a cell of data as code.
"""
