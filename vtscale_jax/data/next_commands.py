"""What most would run next, as commands to type."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtscale_jax.data.mixture_manifest import Manifest, default_heldout

BATCH = 16  # samples of a batch in CONFIG, of which the held-out records must fill one
CONFIG = "configs/m256.py"
DRAWN = (0, 0.1)  # what CONFIG trains on: the part of (config.seed, data.subset)


def after_prepare(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """A mixture of the prepared folder alone; of small ones more records are held out
    than by default, enough for a batch. Nothing for a folder without records."""
    number = manifest["records"]
    if number == 0:
        return []
    words = ["python", "-m", "vtscale_jax.data", "mixture", "--out", "mixture.json"]
    if default_heldout(number) < BATCH:
        words += ["--heldout", str(min(BATCH, number // 2))]
    words += [f"{manifest['options']['label']}={folder}:1.0"]
    return [shlex.join(words)]


def after_mixture(file: Path, manifest: Manifest) -> list[str]:
    """Training the shipped tiny models on a mixture; nothing for one that holds no
    records out, as training asks for some."""
    heldout, subset = manifest.heldout.records, manifest.subset
    if heldout == 0:
        return []
    words = ["python", "-m", "vtscale_jax.train", "--config", CONFIG]
    # A run folder beside that of the pages which the config has by itself.
    words += [f"--config.name=m256-{file.stem}"]
    words += ["--config.data.name=mixture", f"--config.data.path={file}"]
    # Rows of text alone are there only where `prepare` was told to keep them.
    words += ["--config.data.require_image=False"]
    if heldout < BATCH:
        words += [f"--config.data.batch_size={heldout}"]
    if (subset.seed, subset.fraction) != DRAWN:
        words += [f"--config.seed={subset.seed}"]
        words += [f"--config.data.subset={subset.fraction!r}"]
    return [shlex.join(words)]
