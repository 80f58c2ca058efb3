"""fits.json: every fit as plain numbers, for programs and for whoever asks later.

    {"fits": [{"inputs", "metric", "law", "errors", "formula", <parameters>,
               "intervals": {"budgets": {<parameter>: [low, high]}, "items": …,
                             "both": …},
               "interval_over", "identified", "problems", "chosen", "aicc", "rms_log",
               "leave_one_out", "extrapolation", "m", …}],
     "last_value": […], "failed": […], "excluded": […], "notes": […], …}

Parameters stand at the top of a fit by their names: c, alpha (and c_prime, v1's form
(c'/M)^α) of `power`, s_inf, a, b of `saturating`, and so on. None (null) is a number
that is not defined, or an end that is not there.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vtscale_jax.scaling.result import Analysis, LawFit, SeriesFits
from vtscale_jax.scaling.theory_check import Check


def content(analysis: Analysis, checks: Sequence[Check] = ()) -> dict[str, Any]:
    """The content of fits.json."""
    scores = analysis.scores
    return {
        "fits": [
            _fit(one, name, found)
            for one in analysis.fits
            for name, found in one.fits.items()
        ],
        "last_value": [_last_value(one) for one in analysis.fits],
        "failed": [
            {**_named(one), "law": law, "why": why}
            for one in analysis.fits
            for law, why in one.failed.items()
        ],
        "theory_checks": [plain(check._asdict()) for check in checks],
        "excluded": [one._asdict() for one in scores.excluded],
        "notes": list(scores.notes),
        "source": scores.source,
        "seed": analysis.seed,
        "replicates": analysis.replicates,
    }


def plain(value: Any) -> Any:
    """The same with None for what is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _named(one: SeriesFits) -> dict[str, Any]:
    return {"inputs": one.series.inputs, "metric": one.series.metric}


def _fit(one: SeriesFits, name: str, found: LawFit) -> dict[str, Any]:
    return plain(
        {
            **_named(one),
            "law": name,
            "formula": found.law.formula,
            "errors": "log" if name == "power" else one.errors,
            **found.estimates,
            "intervals": {
                kind: {parameter: list(ends) for parameter, ends in by_name.items()}
                for kind, by_name in found.intervals.items()
            },
            "interval_over": found.main,
            "identified": found.identified,
            "problems": list(found.problems),
            "chosen": name == one.chosen,
            "aicc": found.aicc,
            "rms_log": found.rms_log,
            "leave_one_out": found.leave_one_out,
            "extrapolation": found.extrapolation,
            "last_value_leave_one_out": one.last_value_leave_one_out,
            "last_value_extrapolation": one.last_value_extrapolation,
            "cut": one.cut,
            "dispersion": one.dispersion,
            "m": [int(m) for m in one.series.m],
            "score": [float(score) for score in one.series.score],
        }
    )


def _last_value(one: SeriesFits) -> dict[str, Any]:
    return plain(
        {
            **_named(one),
            "cut": one.cut,
            "leave_one_out": one.last_value_leave_one_out,
            "extrapolation": one.last_value_extrapolation,
        }
    )
