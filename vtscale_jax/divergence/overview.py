"""One self-contained page about one or several measurements, from result files only."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vtscale_jax.divergence.figures import draw_all
from vtscale_jax.divergence.findings import COLUMNS, Cell, Finding, cells, findings
from vtscale_jax.divergence.result import LEAST_COUNT, Result
from vtscale_jax.report.pages import data_uri, environment, flatten, sorting

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
    template = environment(Path(__file__).parent).get_template("overview.html.jinja")
    page = template.render(
        title="How hidden states part",
        models=[_model(result) for result in results],
        columns=COLUMNS,
        figures=[_drawn(name, paths[name], len(results)) for name in _FIGURES],
        least=least,
        **sorting(),
    )
    path = folder / "overview.html"
    path.write_text(page, encoding="utf-8")
    return path


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
    narrow = name in _COLUMN_WIDE or (num_results == 1 and name != "fig01_bound")
    return Drawn(
        name,
        *_FIGURES[name],
        data_uri(path),
        "column" if narrow else "page",
    )
