"""Values of the commands' arguments: configs, sizes, lists of M."""

import re
from collections.abc import Sequence
from typing import Any

from vtscale_jax.cost.latency import LatencyError, check_queries


def read_config(words: str, overrides: Sequence[str] = ()) -> Any:
    """The config that --config FILE[:WORDS] and --config.FIELD=VALUE mean, as `train`
    reads them; ValueError for a file, word or field that there is not.

    Sizes are those that the config states, whether its weights are at hand or not.
    """
    from vtscale_jax import config_files, settings

    try:
        config = config_files.read_config([f"--config={words}", *overrides])
    except ValueError as error:
        raise ValueError(
            f"--config {words}: {error}\nGive a config of this repository, like "
            "configs/m256.py:paper"
        ) from error
    if "num_queries" not in config:
        raise ValueError(
            f"--config {words} has no num_queries: it is no config of this model; give "
            "one like configs/m256.py:paper"
        )
    settings.check(config)
    return config


def image_size(text: str) -> tuple[int, int]:
    """(height, width) of --image WIDTHxHEIGHT; ValueError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if found is None:
        raise ValueError(
            f"--image is {text!r}, expected WIDTHxHEIGHT in pixels, like 640x480"
        )
    return int(found[2]), int(found[1])


def query_list(text: str | None) -> tuple[int, ...]:
    """The M of --num_queries 1,8,16, rising; none where nothing was given."""
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise LatencyError(
            f"--num_queries is {text!r}, expected whole numbers with commas: 1,8,16"
        )
    return check_queries([int(word) for word in words])
