"""The figures of the paper's analysis, drawn from result files only.

    draw_all([read_result(path) for path in paths], Path("runs/divergence/figures"))

Numbers are those of the paper; names with v1 are those of its first version. The files
are sized for print: 3.3 in wide (a column) or 6.8 in (a page), no text below 7 pt but
sub- and superscripts.
"""

from collections.abc import Sequence
from pathlib import Path

from vtscale_jax.divergence.figures.divergence_figures import (
    draw_balance,
    draw_delta,
    draw_divergence,
    draw_first_divergence,
)
from vtscale_jax.divergence.figures.measured_figures import (
    draw_excess,
    draw_histograms,
    draw_measures,
    draw_within,
)
from vtscale_jax.divergence.figures.theory_figures import (
    draw_bound_examples,
    draw_exponents,
)
from vtscale_jax.divergence.result import LEAST_COUNT, Result
from vtscale_jax.report.drawing import save


def draw_all(
    results: Sequence[Result],
    folder: Path,
    beta: float | int = 1.0,
    *,
    least: int = LEAST_COUNT,
) -> dict[str, Path]:
    """Writes every figure into `folder` as PNG and SVG; returns the SVG paths by name.

    Panels stand in the order of `results`. `beta` is that of Fig. 2, whose α(n) is
    proportional to it; fewer than `least` pairs are drawn lighter.
    Raises ValueError when there is no result.
    """
    if not results:
        raise ValueError(
            "results is empty, expected at least one; give the files that "
            "python -m vtscale_jax.divergence measure wrote"
        )
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "fig01_bound": draw_bound_examples(),
        "fig02_exponent": draw_exponents(beta),
        "fig03_within": draw_within(results, least=least),
        "fig04_measures": draw_measures(results, least=least),
        "fig05_divergence": draw_divergence(results, least=least),
        "fig14_excess": draw_excess(results, least=least),
        "fig15_cosines": draw_histograms(results),
        "n_balance": draw_balance(results, least=least),
        "v1_fig03_delta": draw_delta(results, least=least),
        "v1_fig04_divergence": draw_first_divergence(results, least=least),
    }
    return {name: save(figure, folder, name) for name, figure in figures.items()}
