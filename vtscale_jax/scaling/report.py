"""One self-contained page about scores and the laws fitted to them, and its files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vtscale_jax.report.pages import data_uri, environment, sorting
from vtscale_jax.run_folder import write_whole
from vtscale_jax.scaling import fits_file, report_tables
from vtscale_jax.scaling.figures import NO_EXTRAS, Drawn, Extras, draw
from vtscale_jax.scaling.findings import Finding, by_subject, findings
from vtscale_jax.scaling.gains import Gains, gains
from vtscale_jax.scaling.result import Analysis
from vtscale_jax.scaling.theory_check import Check

PAGE = "scaling.html"
WITH, WITHOUT = "vqq", ("vq_ft", "vq")  # the paper's kinds of inputs


class Embedded(NamedTuple):
    """A figure of the page: `source` is a data URI, `width` "column" or "page"."""

    name: str
    title: str
    caption: str
    source: str
    width: str


def write_report(
    analysis: Analysis,
    folder: Path,
    *,
    checks: Sequence[Check] = (),
    extras: Extras = NO_EXTRAS,
) -> tuple[Path, tuple[Finding, ...]]:
    """Writes fits.json, figures/ and the page into `folder`; the page's path and what
    it says first.

    `extras` is what is drawn beside the analysis. The page needs nothing beside it:
    figures are embedded and nothing is loaded from elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(fits_file.content(analysis, checks), ensure_ascii=False, indent=1)
    write_whole(folder / "fits.json", f"{text}\n".encode())
    fused = fusion(analysis)
    said = findings(analysis, fused, checks)
    drawn = draw(analysis, folder / "figures", extras)
    page = environment(Path(__file__).parent).get_template("scaling.html.jinja")
    written = page.render(
        title="How many vision tokens?",
        source=analysis.scores.source,
        findings=by_subject(said),
        tables=report_tables.tables(analysis, fused, checks),
        figures=[_embedded(one) for one in drawn],
        notes=analysis.scores.notes,
        replicates=analysis.replicates,
        seed=analysis.seed,
        **sorting(),
    )
    path = folder / PAGE
    write_whole(path, written.encode())
    return path, said


def fusion(analysis: Analysis) -> tuple[Gains, ...]:
    """What the question in the fusion adds, where scores with and without are there."""
    found = [gains(analysis.scores, WITH, less) for less in WITHOUT]
    return tuple(one for one in found if one.gains)


def _embedded(one: Drawn) -> Embedded:
    return Embedded(
        one.name, one.caption.title, one.caption.text, data_uri(one.path), one.width
    )
