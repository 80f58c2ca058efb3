"""`python -m vtscale_jax.data clean`: document-to-markdown texts by four criteria."""

import argparse
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ head -1 pages.jsonl
  {"image": "ccpdf/p7.png", "src": "Annual report …", "generated": "# Annual report …"}
  $ python -m vtscale_jax.data clean pages.jsonl --out prepared/pages
  … pairs: … kept, … rejected
    lengths too far apart                              …
    texts too dissimilar                               …
  Records: prepared/pages/records.jsonl
Without the package sentence-transformers: --encoder hashed_words --min_similarity 0.5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, and its example."""
    parser.description = textwrap.fill(
        "Keeps the pairs of texts that meet four criteria: both long enough, the "
        "generated one not repeating itself, of similar length, and similar in "
        "meaning. What is kept becomes records that ask for the page's text; what is "
        "not is in OUT/rejected.jsonl with its values."
    )
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "pairs", type=Path, metavar="PAIRS", help='JSONL of "image", "src", "generated"'
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", metavar="DIR", help="image root, for the manifest")
    parser.add_argument(
        "--preset",
        choices=("main", "formula", "class_default"),
        default="main",
        help="thresholds of the authors' main run (default), of their subset with "
        "formulas, or of their class; single ones are set by the options below",
    )
    parser.add_argument(
        "--min_tokens", type=int, metavar="N", help="words of both texts (10)"
    )
    parser.add_argument(
        "--min_distinct",
        type=float,
        metavar="SHARE",
        help="different words among the last of the generated text (0.12)",
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="how many words are the last (256)"
    )
    parser.add_argument(
        "--max_length_gap",
        type=float,
        metavar="SHARE",
        help="difference of the numbers of words ÷ the larger (0.2)",
    )
    parser.add_argument(
        "--min_similarity",
        type=float,
        metavar="COSINE",
        help="of the embeddings (0.7, which is for mpnet)",
    )
    parser.add_argument(
        "--encoder",
        default="mpnet",
        help="mpnet, hashed_words or llm:NAME; mpnet (default) is the paper's, and "
        "needs the package sentence-transformers",
    )
    parser.add_argument(
        "--min_chars", type=int, default=25, metavar="N", help="of a record (25)"
    )
    parser.add_argument(
        "--max_chars", type=int, default=5000, metavar="N", help="of a record (5000)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that count words (default: 1)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of the questions' words (default: 42)"
    )


def run(options: argparse.Namespace, open_llm: Callable[..., Any]) -> None:
    """Runs the command; `open_llm` is `open_pretrained_llm` of `data.__main__`."""
    import dataclasses

    from vtscale_jax.data.clean.criteria import PRESETS
    from vtscale_jax.data.clean.encoders import MPNET, open_encoder
    from vtscale_jax.data.clean.run import clean

    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(PRESETS[options.preset])
        if getattr(options, field.name) is not None
    }
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}, expected 1 or more.")
    if not 0 <= options.min_chars <= options.max_chars:
        raise ValueError(
            f"--min_chars, --max_chars: got {options.min_chars} and "
            f"{options.max_chars}; expected 0 <= min_chars <= max_chars."
        )
    limits = dataclasses.replace(PRESETS[options.preset], **given)
    encoder = open_encoder(options.encoder, open_llm)
    if encoder.name != MPNET and options.min_similarity is None:
        print(
            f"note: --min_similarity {limits.min_similarity} is for {MPNET}; cosines "
            f"of {encoder.name} are on another scale"
        )
    report = clean(
        options.pairs,
        options.out,
        limits=limits,
        encoder=encoder,
        images=options.images,
        seed=options.seed,
        chars=(options.min_chars, options.max_chars),
        workers=options.workers,
    )
    rejected = report["pairs"] - report["kept"]
    print(f"{report['pairs']} pairs: {report['kept']} kept, {rejected} rejected")
    for reason, entry in report["rejected"].items():
        print(f"  {reason:<44} {entry['count']:>7}")
    if report["encoder"]["texts_cut"]:
        print(f"  ({report['encoder']['texts_cut']} texts were embedded in part only)")
    if options.images is None:
        print("note: no image root is known; --images DIR puts it into the manifest")
    print(f"Records: {options.out / 'records.jsonl'}")
    out = shlex.quote(f"pages={options.out}:1.0")
    print(f"Next: python -m vtscale_jax.data mixture --out mixture.json {out}")
