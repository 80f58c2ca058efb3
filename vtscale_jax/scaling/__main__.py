"""Command line of `scaling`: laws from scores, their figures, a report.

python -m vtscale_jax.scaling report published --out runs/published
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtscale_jax.scaling.options import PUBLISHED, parse

PUBLISHED_WITHOUT = ("RealWorldQA/Overall", (384, 512))  # the paper's Fig. 11


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    commands = {"fit": _fit, "figures": _figures, "report": _report}
    try:
        commands[options.command](options)
        sys.stdout.flush()  # here, where a closed pipe is heard of
    except BrokenPipeError:
        # Whoever read the output has enough; what is left of it must not raise at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written over", file=sys.stderr)
        return 130
    return 0


# Each command loads what it needs: help needs nothing, fits need no figures.
def _fit(options: argparse.Namespace) -> None:
    from vtscale_jax.scaling.fits_file import content
    from vtscale_jax.scaling.laws import LAWS, MEASURED_THEORY, WEIGHTED_POWER
    from vtscale_jax.scaling.scores import ScoresError
    from vtscale_jax.scaling.text_table import table

    known = (*LAWS, WEIGHTED_POWER.name, MEASURED_THEORY)
    for law in options.law or ():
        if law not in known:
            raise ScoresError(f"--law is {law!r}, expected one of {', '.join(known)}")
    scores = _scores(options)
    analysis = _analysis(options, scores)
    checks = _checks(options, scores)
    there = {name for one in analysis.fits for name in (*one.fits, *one.failed)}
    for law in options.law or ():
        if law not in there:
            needed = (
                "one --divergence" if law == MEASURED_THEORY else "n_items or stderr"
            )
            raise ScoresError(f"--law {law} needs {needed}, which is not there")
    if options.json:
        print(json.dumps(content(analysis, checks), ensure_ascii=False))
        return
    print(table(analysis, options.law))
    for check in checks:
        print(check.sentence)
    for one in analysis.scores.excluded:
        print(
            f"left out: {one.metric} {one.inputs} at M = {one.n_l}: {one.value} "
            f"{one.reason} ({one.where})"
        )
    for note in analysis.scores.notes:
        print(f"note: {note}")


def _figures(options: argparse.Namespace) -> None:
    from vtscale_jax.scaling.figures import draw

    scores = _scores(options)
    analysis = _analysis(options, scores)
    folder = options.out / "figures"
    drawn = draw(analysis, folder, _extras(options, scores))
    print(f"{len(drawn)} figures (PNG and SVG) in {folder}")


def _report(options: argparse.Namespace) -> None:
    from vtscale_jax.scaling.findings import by_subject
    from vtscale_jax.scaling.report import write_report

    scores = _scores(options)
    analysis = _analysis(options, scores)
    checks = _checks(options, scores)
    extras = _extras(options, scores)
    page, found = write_report(analysis, options.out, checks=checks, extras=extras)
    for about, sentences in by_subject(found).items():
        print(about)
        for one in sentences:
            print(f"  {one.text}")
    print(
        f"Report:  {page}\nFits:    {options.out / 'fits.json'}\n"
        f"Figures: {options.out / 'figures'} (PNG and SVG)"
    )


def _is_published(options: argparse.Namespace) -> bool:
    return options.scores == [PUBLISHED] and not Path(PUBLISHED).exists()


def _scores(options: argparse.Namespace) -> Any:
    """The scores that were asked for; ScoresError for inputs or metrics that are not
    there."""
    from vtscale_jax.scaling.published import published_scores
    from vtscale_jax.scaling.reading import read_scores, without
    from vtscale_jax.scaling.scores import ScoresError

    if _is_published(options):
        scores = published_scores()
    else:
        scores = read_scores(
            [Path(path) for path in options.scores], models=options.model
        )
    for metric, numbers in getattr(options, "exclude", None) or ():
        scores = without(scores, metric, numbers)
    for field, there in (("inputs", scores.inputs()), ("metric", scores.metrics())):
        for asked in getattr(options, field) or ():
            if asked not in there:
                raise ScoresError(
                    f"--{field} is {asked!r}, but {scores.source} has "
                    f"{', '.join(map(repr, there))}"
                )
    chosen = tuple(
        one
        for one in scores.series
        if (options.inputs is None or one.inputs in options.inputs)
        and (options.metric is None or one.metric in options.metric)
    )
    left_out = tuple(
        one
        for one in scores.excluded
        if (options.inputs is None or one.inputs in options.inputs)
        and (options.metric is None or one.metric in options.metric)
    )
    return scores._replace(series=chosen, excluded=left_out)


def _analysis(options: argparse.Namespace, scores: Any) -> Any:
    from tqdm import tqdm

    from vtscale_jax.scaling.analysis import How, analyse

    upsilons = _upsilons(options)
    how = How(
        cut=options.cut,
        huber=options.huber,
        replicates=options.replicates,
        seed=options.seed,
        # Among the laws stands Υ of one result; `_checks` has all of them.
        upsilon=next(iter(upsilons.values())) if len(upsilons) == 1 else None,
    )
    with tqdm(total=len(scores.series), desc="fits", disable=None) as bar:
        return analyse(scores, how, lambda name: bar.update())


def _upsilons(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Υ(n) where it is above 0 and enough pairs are n long, by the result's name."""
    if not options.divergence:
        return {}
    from vtscale_jax.divergence.result import LEAST_COUNT, read_result
    from vtscale_jax.divergence.summary import spread_of
    from vtscale_jax.scaling.scores import ScoresError

    found = {}
    for path in options.divergence:
        result = read_result(path)
        means = {name: band.mean for name, band in result.curves.items()}
        upsilon = spread_of(means, "symmetric")
        if result.name in found:
            raise ScoresError(f"--divergence: two results are named {result.name!r}")
        found[result.name] = {
            n: float(value)
            for n, (value, count) in enumerate(
                zip(upsilon, result.counts, strict=True), start=1
            )
            if count >= LEAST_COUNT and value > 0
        }
    return found


def _checks(options: argparse.Namespace, scores: Any) -> list[Any]:
    from vtscale_jax.scaling.theory_check import check

    return [
        check(series, upsilon, name, cut=options.cut, huber=options.huber)
        for name, upsilon in _upsilons(options).items()
        for series in scores.series
    ]


def _extras(options: argparse.Namespace, scores: Any) -> Any:
    """What is drawn beside the scores: other models and methods with the paper's own,
    second fits without some M, ψ_Δ of divergence results."""
    import numpy as np

    from vtscale_jax.scaling.figures import Extras
    from vtscale_jax.scaling.published import other_models, token_reduction
    from vtscale_jax.scaling.reading import without

    asked = options.without
    published = _is_published(options)
    if asked is None and published and PUBLISHED_WITHOUT[0] in scores.metrics():
        asked = [PUBLISHED_WITHOUT]
    second = None
    if asked:
        names = [metric for metric, _ in asked]
        second = scores._replace(
            series=tuple(one for one in scores.series if one.metric in names)
        )
        for metric, numbers in asked:
            second = without(second, metric, numbers)
        second = _analysis(options, second)
    curves = None
    if options.divergence:
        from vtscale_jax.divergence.result import LEAST_COUNT, read_result

        curves = {}
        for path in options.divergence:
            result = read_result(path)
            (used,) = np.nonzero(result.counts >= LEAST_COUNT)
            curves[result.name] = (used + 1, result.curves["psi_delta"].mean[used])
    return Extras(
        models=other_models() if published else None,
        token_reduction=token_reduction() if published else None,
        without=second,
        psi_delta=curves,
    )


if __name__ == "__main__":
    sys.exit(main())
