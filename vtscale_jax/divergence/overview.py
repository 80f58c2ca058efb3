"""One self-contained page about one or several measurements, from result files only."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from vtscale_jax.divergence.figures import draw_all
from vtscale_jax.divergence.findings import COLUMNS, Cell, Finding, cells, findings
from vtscale_jax.divergence.result import LEAST_COUNT, Result

_HERE = Path(__file__).parent

# Title and caption of each figure, in the order of the page.
_FIGURES = {
    "fig05_divergence": (
        "Divergence and its bound (Fig. 5)",
        "The mean of D(n) over pairs, against λ√Υ(n) with λ fitted and against a free "
        "power law c·nᵃ. Below, how many pairs are n long, and the least number that "
        "fits ask for (dotted).",
    ),
    "fig03_within": (
        "Correlation within a branch (Fig. 3)",
        "Of the states of A, of those of B, and the mean of both.",
    ),
    "fig04_measures": (
        "The three measures (Fig. 4)",
        "Within a branch, at equal positions of both branches, and between them.",
    ),
    "fig14_excess": (
        "Within against between (Fig. 14)",
        "The theory supposes that the difference below is not negative. Where it was "
        "measured, the dotted line is the same difference after A and B were exchanged "
        "at random positions: it must be 0.",
    ),
    "fig15_cosines": (
        "Cosines of hidden states (Fig. 15)",
        "Densities of all cosines, before the negative ones are cut off.",
    ),
    "n_balance": (
        "Where √n ends and n begins",
        "n_balance(n) = (1 − ψ_equal)/(ψ_cross − ψ_cross^AB) − 1. Above the diagonal "
        "it is larger than n, and the bound grows like √n. Below, like n. Bars at the "
        "top: no balance point, since the difference is 0 or less.",
    ),
    "v1_fig03_delta": (
        "Correlation of differences (first version, Fig. 3)",
        "ψ_Δ(n), the mean cosine of differences of states; the n at which the bound "
        "has come down to r times its linear part; and the n from which ψ_Δ hardly "
        "changes any more.",
    ),
    "v1_fig04_divergence": (
        "Divergence and the first version’s bound (Fig. 4 there)",
        "E[D(n)] against σ√(n + (n² − n)ψ_Δ(n)) with σ fitted.",
    ),
    "fig01_bound": (
        "Theory: how ψ shapes the bound (Fig. 1)",
        "Nothing here was measured. The cross marks the n beyond which Υ is negative "
        "and there is no bound; n_balance parts √n from n.",
    ),
    "fig02_exponent": (
        "Theory: the exponent α(n) (Fig. 2)",
        "Of S(n) = c/n^α(n), for constant ψ. Nothing here was measured. Dots: the "
        "limit for n → 1.",
    ),
}
_COLUMN_WIDE = {"fig02_exponent", "n_balance"}


class Model(NamedTuple):
    """What the page says of one result; tables are (field, value as text)."""

    name: str
    findings: tuple[Finding, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[tuple[str, str], ...]
    fits: tuple[tuple[str, str], ...]
    null: tuple[tuple[str, str], ...]
    manifest: tuple[tuple[str, str], ...]


class Drawn(NamedTuple):
    """A figure of the page: `source` is a data URI, `width` "column" or "page"."""

    name: str
    title: str
    caption: str
    source: str
    width: str


def write_overview(
    results: Sequence[Result],
    folder: Path,
    *,
    beta: float | int = 1.0,
    least: int = LEAST_COUNT,
) -> Path:
    """Draws the figures into `folder`/figures and writes `folder`/overview.html;
    returns the page's path.

    The page needs nothing beside it: figures are embedded and nothing is loaded from
    elsewhere. `beta` and `least` are those of `draw_all`. Raises ValueError when there
    is no result.
    """
    paths = draw_all(results, folder / "figures", beta, least=least)
    script = (_HERE / "overview_sort.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,  # Names and reasons are data, never markup.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("overview.html.jinja").render(
        title="How hidden states part",
        models=[_model(result) for result in results],
        columns=COLUMNS,
        figures=[_drawn(name, paths[name], len(results)) for name in _FIGURES],
        least=least,
        # The page's policy names this one script: no other can run.
        script=script,
        script_hash=base64.b64encode(digest).decode("ascii"),
    )
    path = folder / "overview.html"
    path.write_text(page, encoding="utf-8")
    return path


def flatten(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of every leaf of a nested dict, in order; lists of
    many numbers by their length and ends.

    >>> list(flatten({"a": {"b": 0.25}, "c": [1, 2, 3]}))
    [('a.b', '0.25'), ('c', '1, 2, 3')]
    """
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _model(result: Result) -> Model:
    about = {
        "kind": result.kind,
        "layer": result.layer,
        "reduction": result.reduction,
        "positions": result.num_positions,
        "largest norm": result.largest_norm,
    }
    return Model(
        name=result.name,
        findings=findings(result),
        cells=cells(result),
        pairs=tuple(flatten(about | result.pairs)),
        fits=tuple(flatten(result.fits)),
        null=tuple(flatten(result.null or {})),
        manifest=tuple(flatten(result.manifest)),
    )


def _drawn(name: str, path: Path, num_results: int) -> Drawn:
    image = base64.b64encode(path.read_bytes()).decode("ascii")
    narrow = name in _COLUMN_WIDE or (num_results == 1 and name != "fig01_bound")
    return Drawn(
        name,
        *_FIGURES[name],
        f"data:image/svg+xml;base64,{image}",
        "column" if narrow else "page",
    )


def _text(value: Any) -> str:
    """A value as the page shows it: six digits, "–" for none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 24:
        ends = f"{_text(value[0])}, {_text(value[1])}, … {_text(value[-1])}"
        return f"{len(value)} values: {ends}"
    return ", ".join(_text(item) for item in value)
