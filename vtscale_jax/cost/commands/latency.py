"""`python -m vtscale_jax.cost latency`: times to the first token by M."""

import argparse
from pathlib import Path
from typing import Any

from vtscale_jax.cost.commands import audit as audit_command

EXAMPLE = """\
example:
  $ python -m vtscale_jax.cost latency --run runs/m256-embedded --num_queries 1,16,256
    M  TTFT ms    p95  text  views  transfer  vision  fusion  prefill  tokens/s …
    1    13.06  14.01  0.31   3.54      0.24    2.57    4.00     1.96    7511.5
   16    13.14  14.41  0.32   3.52      0.23    2.45    4.11     1.99    7937.5
  256    32.92  34.05  0.46   3.50      0.23    2.61   16.13     9.49    5231.6
  …
  Report: runs/latency-m256-embedded/report.html
  $ python -m vtscale_jax.cost latency --config configs/m768.py:paper   # random weights
Then: python -m vtscale_jax.cost audit TABLE.csv --device h100
"""
NEW_TOKENS = 32


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "latency",
        help="times to the first token and decoding speed, by M",
        description="Times what `ask` does, part by part: at least 30 rounds over all "
        "M in turn, everything compiled before, every result waited for. Each row is "
        "held against the device's peak, and rejected if it is faster. Rounds are "
        "kept: the same command goes on after an interruption.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--run", type=Path, help="folder of a finished run")
    model.add_argument(
        "--config",
        metavar="FILE[:WORDS]",
        help="or the sizes of a config with random weights: configs/m768.py:paper; "
        "fields are set by --config.FIELD=VALUE",
    )
    parser.add_argument(
        "--num_queries",
        metavar="M,M,…",
        help="default: 1, 8, 16, … 768 (of a run: up to its own)",
    )
    parser.add_argument(
        "--image",
        metavar="FILE|WxH",
        default="640x480",
        help="an image file, read anew each time, or a size: drawn pixels in memory "
        "(default: %(default)s)",
    )
    parser.add_argument("--question", metavar="TEXT", help="with --run")
    parser.add_argument(
        "--question_tokens",
        type=int,
        metavar="T",
        help="with --config: tokens of the prompt beside the vision tokens, template "
        f"included (default: {audit_command.QUESTION_TOKENS})",
    )
    parser.add_argument(
        "--repetitions",
        type=int,
        metavar="N",
        help="rounds (default: 30; fewer are said in the results)",
    )
    parser.add_argument(
        "--new_tokens",
        type=int,
        metavar="N",
        default=NEW_TOKENS,
        help="tokens to make after the first, a multiple of 8; none is taken for an "
        "end (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of order and weights")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/latency-NAME"
    )
    parser.add_argument("--json", action="store_true", help="rows as one line of JSON")


def run(options: argparse.Namespace, published: Path) -> None:
    """Runs the command; `published` is the paper's Table 6."""
    import json

    from vtscale_jax.cost import tables
    from vtscale_jax.cost.rows import as_json

    subject = open_subject(options)
    folder = options.out or Path("runs") / f"latency-{subject.name}"
    measured, judged, peak = timed(
        subject,
        rounds=options.repetitions,
        new_tokens=options.new_tokens,
        folder=folder,
        seed=options.seed,
    )
    theirs = their_audit(published)
    page = write_results(folder, subject.name, measured, judged, peak, theirs)
    if options.json:
        print(json.dumps([as_json(row) for row in judged.rows], ensure_ascii=False))
        return
    print("\n".join(tables.told(judged.rows, theirs.times)))
    from vtscale_jax.cost.report import findings

    for finding in findings(measured, judged, peak):
        print(finding.text)
    print(f"The paper's Table 6: {theirs.verdict}")
    print(f"memory: {measured.memory_how}")
    print(
        f"Report: {page}\nTables: {folder / 'table6.csv'}, {folder / 'table7.csv'}\n"
        f"Figure: {folder / 'ttft.png'} (and .svg); all repetitions: "
        f"{folder / 'latency.json'}\n"
        f"Another's table: python -m vtscale_jax.cost audit TABLE.csv --device "
        f"{audit_command.PUBLISHED_DEVICE}"
    )


def open_subject(options: argparse.Namespace) -> Any:
    """The model, image and question that the command names."""
    from vtscale_jax.cost import subject
    from vtscale_jax.cost.commands.values import query_list, read_config

    queries = query_list(options.num_queries)
    if options.repetitions is not None and options.repetitions < 1:
        raise ValueError(f"--repetitions is {options.repetitions}, expected 1 or more")
    picture = subject.picture_of(options.image)
    if options.run is not None:
        for name in ("question_tokens", "overrides"):
            if getattr(options, name):
                raise ValueError(
                    f"{options.overrides[0] if name == 'overrides' else '--' + name} "
                    "goes with --config FILE: a run has its own config and tokenizer"
                )
        question = options.question or subject.QUESTION
        return subject.of_run(options.run, queries, picture, question)
    if options.question is not None:
        raise ValueError(
            "--question goes with --run: with --config no tokenizer is read, and the "
            "prompt has --question_tokens drawn tokens"
        )
    tokens = options.question_tokens
    return subject.of_config(
        read_config(options.config, options.overrides),
        queries,
        picture,
        question_tokens=audit_command.QUESTION_TOKENS if tokens is None else tokens,
        seed=options.seed,
    )


def timed(
    subject: Any,
    *,
    rounds: int | None,
    new_tokens: int,
    folder: Path,
    seed: int = 0,
) -> tuple[Any, Any, Any]:
    """Measures with a progress bar; the measurement, what is to be thought of it, and
    the device's peak. `rounds` None means 30."""
    from tqdm import tqdm

    from vtscale_jax.cost import latency
    from vtscale_jax.cost.peak import of_device
    from vtscale_jax.cost.rows import higher, judge

    rounds = latency.ROUNDS if rounds is None else rounds
    number = len(subject.queries)
    begun = latency.rounds_left(folder)
    total = number * (1 + max(0, rounds - begun)) if begun < rounds else 0
    dtype = subject.model.llm.blocks.dtype
    before = recorded_peak(folder, of_device(dtype))
    with tqdm(total=total, desc="warm-up", disable=None) as bar:

        def tick(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        measured = latency.measure(
            subject,
            rounds=rounds,
            new_tokens=new_tokens,
            folder=folder,
            seed=seed,
            tick=tick,
        )
    # Others that were busy at one time may not have been at the other.
    peak = higher(before, of_device(dtype))
    return measured, judge(measured, subject, peak), peak


def recorded_peak(folder: Path, now: Any) -> Any:
    """The device's peak, and that which an earlier launch has noted where that is
    higher: a machine that is busy now has not become another."""
    from vtscale_jax.cost import latency
    from vtscale_jax.cost.rows import higher
    from vtscale_jax.run_folder import RunFolder

    if not (folder / latency.RESULT).exists():
        return now
    noted = RunFolder(folder).read(latency.RESULT).get("peak")
    if noted is None or noted["name"] != now.name or noted["source"] != now.source:
        return now
    return higher(now, type(now)(**noted))


def their_audit(published: Path) -> Any:
    """The paper's Table 6 and what the audit says of it, with the config of the paper
    where it is in this folder."""
    from vtscale_jax.cost import audit, report, verdicts
    from vtscale_jax.cost.commands.values import image_size, read_config

    table = audit.read_file(published)
    times = {row.n_l: row.ttft_s for row in table.rows}
    if not Path(audit_command.CONFIG.partition(":")[0]).is_file():
        return report.theirs_of(
            times,
            f"Not audited here, since {audit_command.CONFIG} is not in this folder: "
            f"python -m vtscale_jax.cost audit --device "
            f"{audit_command.PUBLISHED_DEVICE} does it.",
        )
    found, slope = audit_command.audited(
        table,
        read_config(audit_command.CONFIG),
        audit_command.PUBLISHED_DEVICE,
        question_tokens=audit_command.QUESTION_TOKENS,
        image=image_size("640x480"),
        noise=audit_command.NOISE,
    )
    return report.Theirs(
        times,
        verdicts.sentence(found),
        verdicts.slope_sentence(slope),
        tuple(verdicts.pair_cells(found.impossible)),
    )


def write_results(
    folder: Path, name: str, measured: Any, judged: Any, peak: Any, theirs: Any
) -> Path:
    """Everything that is drawn from the repetitions, into their folder; the page."""
    from vtscale_jax.cost import figure, latency, report, rows, tables, verdicts
    from vtscale_jax.run_folder import RunFolder, write_whole

    content = latency.as_json(measured) | {
        "peak": peak._asdict(),
        "rows": [rows.as_json(row) for row in judged.rows],
        "pairs": [verdicts.pair_json(pair) for pair in judged.pairs],
    }
    RunFolder(folder).write(latency.RESULT, content)
    for file, heads, cells in (
        ("table6.csv", tables.TABLE_6, tables.table_6(judged.rows, theirs.times)),
        ("table7.csv", tables.TABLE_7, tables.table_7(judged.rows)),
    ):
        write_whole(folder / file, verdicts.as_csv(heads, cells).encode())
    drawn = figure.draw(judged.rows, theirs.times, folder)
    return report.write_report(folder, name, measured, judged, peak, theirs, drawn)
