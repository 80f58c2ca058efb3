"""vtscale_jax: how many vision tokens does a vision-language model need, and why."""

__version__ = "0.1.0"
