"""`python -m vtscale_jax.data augment`: questions written from descriptions."""

import argparse
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ python -m vtscale_jax.data prepare svit detail_description.json \\
        --images images --out prepared/descriptions
  $ python -m vtscale_jax.data augment prepared/descriptions \\
        --llm meta-llama/Meta-Llama-3-8B-Instruct --batch_size 32 \\
        --out prepared/questions
Stopped at any moment, the same command goes on. On any machine, to see how it works:
  $ python -m vtscale_jax.weights fetch smollm2-135m
  $ python -m vtscale_jax.data augment prepared/descriptions --llm smollm2-135m \\
        --limit 4 --out prepared/try --max_new_tokens 96
  4 descriptions
  yes_no: 8 accepted of 8 asked
    answers: Yes 2, No 6
  choice: 5 accepted of 8 asked
    two options are the same                                 3
    …
  Records: prepared/try/records.jsonl
A reply in the right form may still be wrong: so small a model mostly is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command, and its example."""
    parser.description = textwrap.fill(
        "A language model writes yes/no questions and single-choice questions from "
        "detailed descriptions of images. Replies that do not have the form asked for "
        "are left out and counted by reason (OUT/report.json); options are shuffled."
    )
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "records",
        type=Path,
        metavar="RECORDS",
        help="prepared folder or JSONL of records; descriptions are those with an "
        "image, one turn and a long answer",
    )
    parser.add_argument(
        "--llm",
        required=True,
        help="an instruction-tuned language model: a Hugging Face folder or name, a "
        ".gguf file, or smollm2-135m",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--kinds",
        default="yes_no,choice",
        help="of questions, with commas (default: %(default)s)",
    )
    parser.add_argument(
        "--per_description",
        type=_whole_number,
        default=2,
        metavar="N",
        help="questions of each kind (default: %(default)s)",
    )
    parser.add_argument(
        "--source",
        default="",
        metavar="TEXT",
        help="only records whose id begins so",
    )
    parser.add_argument(
        "--min_chars",
        type=_whole_number,
        default=200,
        metavar="N",
        help="characters of the shortest description (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=_whole_number, metavar="N", help="at most so many descriptions"
    )
    parser.add_argument(
        "--balance",
        action="store_true",
        help="as many Yes as No (the surplus is left out and counted), and each letter "
        "as often",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--batch_size", type=_whole_number, default=8, metavar="B", help="default: 8"
    )
    parser.add_argument(
        "--max_new_tokens", type=_whole_number, default=128, metavar="N"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.7, help="default: %(default)s"
    )
    parser.add_argument(
        "--top_p", type=float, default=0.95, help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the model; default: bfloat16 on accelerators, float32 on CPU",
    )
    parser.add_argument("--int8", action="store_true", help="weights as int8")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="image root, for the manifest (default: that of the prepared folder)",
    )


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def run(options: argparse.Namespace, open_llm: Callable[..., Any]) -> None:
    """Runs the command.

    `open_llm(name, dtype=…, int8=…, apart=…)` opens a language model and returns it
    with what identifies it: `open_pretrained_llm` of `data.__main__`, since this rib
    does not import that of the weights.
    """
    from vtscale_jax.data.augment.prompts import checked_kinds
    from vtscale_jax.data.augment.run import Choice, augment
    from vtscale_jax.data.augment.writing import LLMAuthor
    from vtscale_jax.data.prepared_folder import read_manifest, records_file

    kinds = checked_kinds(options.kinds.split(","))
    records_file(options.records)  # complains before a model is loaded
    model, identity = open_llm(
        options.llm, dtype=options.dtype, int8=options.int8, apart=True
    )
    author = LLMAuthor(
        model,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    sampling = ("max_new_tokens", "temperature", "top_p")
    about = {**identity, **{name: getattr(options, name) for name in sampling}}
    report = augment(
        options.records,
        options.out,
        author,
        about,
        Choice(
            kinds=kinds,
            per_description=options.per_description,
            source=options.source,
            min_chars=options.min_chars,
            limit=options.limit,
            balance=options.balance,
        ),
        seed=options.seed,
        images=options.images,
    )
    _say(report, options.out)
    if read_manifest(options.out)["images"] is None:
        print("note: no image root is known; --images DIR puts it into the manifest")
    named = shlex.quote(f"questions={options.out}:1.0")
    print(f"Next: python -m vtscale_jax.data mixture --out mixture.json {named}")


def _say(report: dict[str, Any], out: Path) -> None:
    print(f"{report['descriptions']['chosen']} descriptions")
    for kind, found in report["questions"].items():
        print(f"{kind}: {found['accepted']} accepted of {found['asked']} asked")
        for reason, entry in found["rejected"].items():
            print(f"  {reason:<50} {entry['count']:>7}")
        if found["left_out_for_balance"]:
            print(f"  ({found['left_out_for_balance']} left out for balance)")
        answers = report["as_kept"][kind]["answers"]
        print("  answers: " + ", ".join(f"{a} {n}" for a, n in answers.items()))
    print(f"Records: {out / 'records.jsonl'}")
