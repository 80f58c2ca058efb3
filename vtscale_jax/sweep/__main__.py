"""Adapts a base to every M, evaluates, fits, draws: `python -m vtscale_jax.sweep`.

    python -m vtscale_jax.sweep --plan              # what it would do, and how long
    python -m vtscale_jax.sweep                     # from the base that ships
    python -m vtscale_jax.sweep --base runs/m256-smol-finetune --num_queries 8,64,256
    python -m vtscale_jax.sweep --inputs vqq -- --config.optim.steps=50

For every M it trains with the question in the fusion input (vqq) and without (vq_ft),
and evaluates the first without it too (vq). What is finished is skipped, an interrupted
part goes on: the same command again. Ends with scores, fits, figures and a report.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vtscale_jax.config_files import QUERIES
from vtscale_jax.run_folder import RunFolder, held
from vtscale_jax.sweep.jobs import Outcome, log_of, run_parts
from vtscale_jax.sweep.options import EMBEDDED_QUERIES, MOST_JOBS, parse
from vtscale_jax.sweep.parts import (
    EMBEDDED,
    FINISHED,
    RECORD,
    TO_DO,
    Base,
    Part,
    SweepError,
    check_folder,
    check_train_arguments,
    identity,
    make_parts,
    read_base,
    scores,
    state,
)
from vtscale_jax.sweep.times import (
    Machine,
    Times,
    ask_costs,
    estimate,
    in_words,
    machine_of,
)

DIVERGENCE = "divergence"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status: 0 also when SIGTERM stopped it with all saved,
    130 after Ctrl-C, 1 when a part failed."""
    options = parse(arguments)
    try:
        return sweep(options)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


def sweep(options: argparse.Namespace) -> int:
    """Plans, runs what is missing, reports; the exit status.

    SweepError, before anything is written, for options that cannot be followed.
    """
    check_train_arguments(options.train)
    base = read_base(options.base, options.preset)
    out = options.out or Path("runs") / f"sweep-{Path(base.path).resolve().name}"
    default = EMBEDDED_QUERIES if base.path == EMBEDDED else QUERIES
    queries = options.num_queries or default
    wanted = identity(base, options.train, options.blank)
    check_folder(out, wanted)
    if not Path("configs/base.py").is_file():
        raise SweepError(
            "there is no configs/base.py here: run this from the repository's root"
        )
    parts = make_parts(
        base, out, queries, options.inputs, options.train, blank=options.blank
    )
    states = {part.name: state(part) for part in parts}
    finished = [name for name, found in states.items() if found == FINISHED]
    times = None
    if len(finished) < len(parts):
        costs = ask_costs(parts)
        _check_families(costs, parts)
        jobs = _chosen_jobs(
            options.jobs, base, machine_of(costs), len(parts) - len(finished)
        )
        times = estimate(parts, costs, finished, jobs)
    print("\n".join(plan_lines(base, out, parts, states, times)))
    if options.plan:
        return 0
    in_use = SweepError(f"--out {out} is in use by another sweep: wait for its end")
    with held(out, in_use):
        check_folder(out, wanted)
        RunFolder(out).write(RECORD, wanted)
        outcome = Outcome([], [], [], None)
        if times is not None:
            outcome = _run(parts, out, times, options.keep_going)
        return _end(parts, out, outcome)


def plan_lines(
    base: Base,
    out: Path,
    parts: Sequence[Part],
    states: dict[str, str],
    times: Times | None,
) -> list[str]:
    """What a sweep will do, a line for each part, and about how long it takes."""
    at_once = ""
    if times is not None and times.jobs > 1:
        at_once = f", {times.jobs} at a time"
    lines = [f"Sweep from {base.path} in {out}: {len(parts)} parts{at_once}"]
    for part in parts:
        about = ""
        if states[part.name] != FINISHED and times is not None:
            about = in_words(times.seconds[part.name])
        lines.append(
            f"  {part.name:<12} {states[part.name]:<12} {about:>8}  {_does(part, base)}"
        )
    if times is None:
        return [*lines, "All parts are finished."]
    left = times.together([name for name in states if states[name] != FINISHED])
    lines.append(f"About {in_words(left)} for what is left, {times.source}.")
    if any(found not in (FINISHED, TO_DO) for found in states.values()):
        lines.append("An interrupted part goes on where it was; it is counted whole.")
    return lines


def _does(part: Part, base: Base) -> str:
    if part.of is not None:
        return f"evaluates {part.of} without the question"
    how = "with" if part.inputs == "vqq" else "without"
    text = f"adapts to M = {part.num_queries} {how} the question"
    if part.num_queries > base.num_queries:
        text += f"; the base has {base.num_queries} queries, more are drawn anew"
    if not part.asked:
        text += f" (not asked for, but m{part.num_queries}-vq needs it)"
    return text


def _check_families(costs: dict, parts: Sequence[Part]) -> None:
    if any(not row["prompts"] for row in costs["runs"]):
        raise SweepError(
            f"{parts[0].name} would have no held-out questions to evaluate: a sweep "
            "needs data.name digit_pages and eval.questions of at least 1. To train "
            "for every M only, use launch/sweep.sh"
        )


def _chosen_jobs(asked: int | None, base: Base, machine: Machine, most: int) -> int:
    on_cpu = machine.platform == "cpu"
    if asked is None:
        many = on_cpu and base.preset == EMBEDDED
        return max(1, min(machine.cores, MOST_JOBS, most)) if many else 1
    if asked > 1 and not on_cpu:
        raise SweepError(
            f"--jobs is {asked}, but each part takes all {machine.platform} devices: "
            "leave --jobs out"
        )
    if asked > machine.cores:
        raise SweepError(
            f"--jobs is {asked}, but there are {machine.cores} cores: expected at most "
            "one part for each"
        )
    return asked


def _run(parts: Sequence[Part], out: Path, times: Times, keep_going: bool) -> Outcome:
    """Runs what is not finished, with a bar and a line for each finished part."""
    left = [part.name for part in parts if state(part) != FINISHED]
    print(f"Logs: {out / 'logs'}", flush=True)
    # A bar on a terminal only: redrawn in a log file it is one endless line.
    with tqdm(total=len(left), desc="sweep", unit="part", disable=None) as bar:

        def say(text: str) -> None:
            tqdm.write(text)
            sys.stdout.flush()

        took = expected = 0.0

        def done(part: Part, seconds: float) -> None:
            nonlocal took, expected
            took += seconds
            expected += times.seconds[part.name]
            left.remove(part.name)
            found = ", ".join(f"{k} {100 * v:.1f}" for k, v in scores(part).items())
            # What the parts took so far says how far off the estimate is.
            rest = times.together(left) * took / expected
            line = f"{part.name}: {in_words(seconds)}; {found} (%)"
            say(line + (f"; about {in_words(rest)} left" if left else ""))
            bar.set_postfix_str(f"about {in_words(rest)} left", refresh=False)
            bar.update()

        return run_parts(
            parts, out, jobs=times.jobs, keep_going=keep_going, say=say, done=done
        )


def _end(parts: Sequence[Part], out: Path, outcome: Outcome) -> int:
    """Reports on what there is, and says what to do next; the exit status."""
    if outcome.stopped is not None:
        print("stopped; the same command goes on", flush=True)
        return 130 if outcome.stopped == signal.SIGINT else 0
    whole = [part for part in parts if state(part) == FINISHED]
    status = 1 if outcome.failed else 0
    if len({part.num_queries for part in whole}) < 2:
        print("No report: it takes finished parts of at least 2 different M.")
    elif report_on(out):
        typed = shlex.join(["python", *report_command(out)[1:]])
        print(f"error: no report was written: {typed}", file=sys.stderr)
        status = 1
    if outcome.failed:
        for name in outcome.failed:
            print(f"Failed:  {name}, see {log_of(out, name)}", file=sys.stderr)
        print(
            f"{len(whole)} of {len(parts)} parts are finished. Mend the cause; the "
            "same command goes on (with --keep_going also past a failure)",
            file=sys.stderr,
        )
    elif status == 0 and len(whole) > 1:
        run = next(part for part in parts if part.of is None)  # the largest M
        measure = ["python", "-m", "vtscale_jax.divergence", "measure"]
        measure += ["--run", str(run.folder), "--out", str(out / DIVERGENCE)]
        print(f"Runs:    {out}")
        if not divergence_results(out):
            print(f"Next:    {shlex.join(measure)}")
            print("         and this again: does the theory predict these scores?")
    return status


def divergence_results(out: Path) -> list[Path]:
    """Measurements of hidden states that were put into the sweep's folder."""
    return sorted((out / DIVERGENCE).glob("*.json"))


def report_command(out: Path) -> list[str]:
    """What reads the scores of a sweep's folder and writes fits, figures and report;
    with measurements of hidden states also whether the theory predicts."""
    module = [sys.executable, "-m", "vtscale_jax.scaling"]
    measured = [f"--divergence={path}" for path in divergence_results(out)]
    return [*module, "report", str(out), "--out", str(out), *measured]


def report_on(out: Path) -> int:
    """Writes the report of a sweep's folder in a process of its own; its status."""
    sys.stdout.flush()
    return subprocess.run(report_command(out), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
