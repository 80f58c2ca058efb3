"""The commands of `python -m vtscale_jax.cost`."""
