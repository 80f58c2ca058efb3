"""A run of this package, opened for another project's harness; and images of files."""

from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from vtscale_jax.compilation import keep_compiled
from vtscale_jax.eval.benchmarks.image_cells import ImageError
from vtscale_jax.eval.benchmarks.images import as_seen
from vtscale_jax.eval.run_model import RunModel, model_name, open_run_model
from vtscale_jax.run_folder import RunFolder
from vtscale_jax.trained import run_config

INPUTS = ("vqq", "vq")


class AdapterError(ValueError):
    """What a harness asks for and the model behind the adapter does not do."""


def open_run(
    run: str | Path,
    *,
    inputs: str | None = None,
    num_queries: int | None = None,
    batch_size: int = 1,
) -> RunModel:
    """The finished run in the folder `run`, over all devices of this process; its
    compiled programs are kept for the next time. `inputs` and `num_queries` as of
    `asked_config`. RunError where there is no such run."""
    keep_compiled()
    config = asked_config(run, inputs=inputs, num_queries=num_queries)
    return open_run_model(Path(run), config, batch_size)


def asked_config(
    run: str | Path, *, inputs: str | None = None, num_queries: int | None = None
) -> ConfigDict:
    """The config of the run with its first `num_queries` queries (default: all), whose
    fusion decoder sees the question (`inputs` "vqq") or not ("vq"; default: as
    trained). RunError as of `trained.run_config`; AdapterError for other inputs."""
    if inputs not in (None, *INPUTS):
        raise AdapterError(
            f"inputs is {inputs!r}: write vqq (the fusion decoder sees the question) "
            "or vq (it does not), or leave it out for what the run was trained with"
        )
    config = run_config(Path(run), num_queries=num_queries)
    if inputs is not None:
        with config.unlocked():
            config.inputs = inputs
    return config


def name_of(
    run: str | Path, *, inputs: str | None = None, num_queries: int | None = None
) -> str:
    """The name for results, as `python -m vtscale_jax.eval run` gives it: M and inputs
    are in it, where `python -m vtscale_jax.scaling report` finds them."""
    config = asked_config(run, inputs=inputs, num_queries=num_queries)
    trained = RunFolder(Path(run)).read("config.json")["inputs"]
    return model_name(Path(run).resolve().name, config, trained)


def read_image(file: str | Path) -> Image.Image:
    """The RGB image in a file. AdapterError names a file that is missing or no image
    (a video, a web address)."""
    try:
        return as_seen(Path(file).read_bytes(), "current")
    except (OSError, ImageError) as error:
        raise AdapterError(
            f"{file}: cannot be read as an image ({error}). The model looks at images "
            "in files of this machine, not at videos, sound or web addresses: leave "
            "out tasks that have them, or fetch the file again"
        ) from error
