"""`python -m vtscale_jax.data mixture`: prepared folders become one training set."""

import argparse
from pathlib import Path

EXAMPLE = """\
example:
  $ python -m vtscale_jax.data mixture --out data/mixture.json \\
        llava=data/llava:1.0 svit=data/svit:0.5 doc=data/doc
  source          records   held out   weight       taken  content
  llava                 …          …        1           …  5c1f…  jsonl
  …
  data/mixture.json: … records to train on; content 8a0e…
  held out of training: 512 others (seed 0); ids 7d02…
  for adaptation: … of those to train on (seed 0, fraction 0.1); ids 19bb…
  Next:   python -m vtscale_jax.train --config configs/m256.py …

Training takes its loss on held-out records from those of the mixture, unless others are
named (--config.data.heldout_path). They are drawn by record, from all sources alike:
another record of training may show the same image.

A weight of 0.5 takes a random half of a source, 2.5 all of it twice and a random half
once more. Where a folder has records packed with their images (prepare --store
arrayrecord), those are used; NAME=FOLDER/records.jsonl takes the others.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    from vtscale_jax.data.mixture_manifest import MOST_HELD_OUT

    parser.description = (
        "Writes a file that says what a training set is made of, with the hash of all\n"
        "that is in it. Training refuses data that differ from it."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="NAME=FOLDER[:WEIGHT]",
        help="a prepared folder and how often an epoch has its records (default: 1)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="as data/mixture.json"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="draws the parts of weights that are not whole (default: %(default)s)",
    )
    parser.add_argument(
        "--heldout",
        type=int,
        metavar="N",
        help="records that training never sees, for its loss on them; 0: none "
        f"(default: {MOST_HELD_OUT}, or a hundredth of the records if that is less)",
    )
    parser.add_argument(
        "--heldout_seed", type=int, default=0, help="draws them (default: %(default)s)"
    )
    parser.add_argument(
        "--subset_seed",
        type=int,
        default=0,
        help="draws the part that stage adapt trains on: the config.seed of those runs "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--subset_fraction",
        type=float,
        default=0.1,
        help="of that part: their config.data.subset (default: %(default)s)",
    )


def parse_source(text: str) -> tuple[str, Path, float]:
    """NAME=FOLDER[:WEIGHT] -> (name, folder, weight).

    What follows the last colon is the weight when it is a number, and part of the
    folder's name otherwise. Raises MixtureError for other forms.

    >>> parse_source("svit=data/svit:0.5")[2]
    0.5
    """
    from vtscale_jax.data.mixture_manifest import MixtureError

    name, equals, rest = text.partition("=")
    folder, colon, tail = rest.rpartition(":")
    weight = 1.0
    try:
        weight = float(tail) if colon else weight
    except ValueError:  # a colon in the folder's name
        folder = rest
    folder = folder if colon else rest
    if not equals or not name or not folder:
        raise MixtureError(
            f"got {text!r}; expected NAME=FOLDER or NAME=FOLDER:WEIGHT, as "
            "llava=data/llava:1.0."
        )
    return name, Path(folder), weight


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from vtscale_jax.data.mixture import make_mixture
    from vtscale_jax.data.next_commands import after_mixture

    sources = [parse_source(text) for text in options.sources]
    mixture = make_mixture(
        options.out,
        sources,
        seed=options.seed,
        subset=(options.subset_seed, options.subset_fraction),
        heldout=(options.heldout_seed, options.heldout),
    )
    manifest = mixture.manifest
    width = max(12, *(len(part.name) for part in manifest.parts))
    print(
        f"{'source':{width}} {'records':>10} {'held out':>10} {'weight':>8} "
        f"{'taken':>11}  content"
    )
    for part in manifest.parts:
        print(
            f"{part.name:{width}} {part.records:10,} {part.heldout:10,} "
            f"{part.weight:8g} {part.taken:11,}  {part.sha256[:16]}  {part.store}"
        )
    heldout, subset, out = manifest.heldout, manifest.subset, options.out
    print(
        f"{out}: {manifest.records:,} records to train on; content "
        f"{manifest.sha256[:16]}\n"
        f"held out of training: {heldout.records:,} others (seed {heldout.seed}); ids "
        f"{heldout.sha256[:16]}\n"
        f"for adaptation: {subset.records:,} of those to train on (seed {subset.seed},"
        f" fraction {subset.fraction:g}); ids {subset.sha256[:16]}"
    )
    for command in after_mixture(out, manifest):
        print(f"Next:   {command}")
    if heldout.records == 0:
        print(
            "Training asks for held-out records: make the mixture with --heldout N, or "
            "name others with --config.data.heldout_path=FILE."
        )
