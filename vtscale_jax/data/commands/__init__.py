"""The commands of `python -m vtscale_jax.data`.

Each has `add_arguments(parser)`, which also sets the parser's description and its
worked example, and `run(options)`.
"""
