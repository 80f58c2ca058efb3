"""`python -m vtscale_jax.data prepare`: one downloaded file -> verified records."""

import argparse
import os
from pathlib import Path

from vtscale_jax.data.sources import NAMES, SVIT_KINDS

EXAMPLE = """\
example:
  $ python -m vtscale_jax.data prepare llava llava_v1_5_mix665k.json \\
        --images playground/data --out data/llava
  … records of 665,298 rows of llava_v1_5_mix665k.json
    left out     40,688  no image (text only)
    …
  Report: data/llava/report.html
  Next:   python -m vtscale_jax.data mixture --out mixture.json llava=data/llava:1.0

sources:
  llava          LLaVA v1.5 mix665k, one JSON array; coco/, gqa/, ocr_vqa/, textvqa/
                 and vg/ below --images
  svit           a JSON file of SVIT, unpacked; vg/VG_100K and vg/VG_100K_2 below
                 --images; boxes refer to the image itself
  docdownstream  mPLUG DocDownstream or DocStruct4M, JSONL; mPLUG_imgs/ or imgs/ below
                 --images. It repeats rows on purpose: --duplicates keep
  vlmeval-tsv    a table of VLMEvalKit; images inside it are written to OUT/images
  jsonl          records in this package's own form, only checked
Ended at any moment, the same command goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes, and its help."""
    parser.description = (
        "Converts a downloaded file to records, and looks at every image once: is it "
        "there, whole, and fit for training? What cannot be used is left out and "
        "counted, with its reason and examples."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("source", metavar="SOURCE", choices=NAMES, help="see below")
    parser.add_argument("input", metavar="INPUT", type=Path, help="the file")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder or URL (gs://, s3://) that the images' paths are relative to",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new or empty folder"
    )
    parser.add_argument(
        "--workers",
        type=_whole_number,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes; the result is the same for any number (default: %(default)s)",
    )
    parser.add_argument(
        "--kind", choices=SVIT_KINDS, help="of a SVIT file (default: as its name says)"
    )
    parser.add_argument(
        "--text_rows",
        choices=("keep", "drop"),
        help="rows without image (default: drop, as the authors do; jsonl: keep)",
    )
    parser.add_argument(
        "--duplicates",
        choices=("drop", "keep"),
        default="drop",
        help="records with the image and messages of an earlier one (default: drop)",
    )
    parser.add_argument(
        "--min_chars",
        type=_count,
        default=25,
        help="of all messages of a record (default: %(default)s)",
    )
    parser.add_argument(
        "--max_chars",
        type=_count,
        default=5000,
        help="of all messages of a record (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=_whole_number, metavar="N", help="only the first N rows"
    )
    parser.add_argument(
        "--store",
        choices=("jsonl", "arrayrecord"),
        default="jsonl",
        help="arrayrecord: also pack records and image files together, readable by "
        "tensorflow_datasets (default: read images in place)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="start anew in a folder that was prepared before, as when images were "
        "mended since",
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from vtscale_jax.data.prepare import Request, prepare
    from vtscale_jax.data.report import summary

    request = Request(
        options.source,
        options.input,
        options.images,
        options.out,
        kind=options.kind,
        text_rows=options.text_rows,
        duplicates=options.duplicates,
        min_chars=options.min_chars,
        max_chars=options.max_chars,
        limit=options.limit,
    )
    prepared = prepare(request, workers=options.workers, again=options.again)
    if not prepared.made:
        print(f"{options.out} was prepared before (--again: anew)")
    if options.store == "arrayrecord":
        from vtscale_jax.data.array_records import pack

        images = prepared.manifest["images"]
        pack(options.out, images, workers=options.workers, say=print)
    print(summary(options.out, prepared.report))


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)
