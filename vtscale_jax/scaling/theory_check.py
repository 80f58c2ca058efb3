"""Does the theory predict? β from scores at a few M, the rest from Υ (paper §3.5).

S(M) = c·(Υ(M)/Υ(1))^(β/2), with Υ measured on the hidden states of the same model. The
scores up to a cut decide c and β; those above it are predicted, and so they are by laws
that know nothing of hidden states, and by the last score up to the cut.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from vtscale_jax.scaling import comparison
from vtscale_jax.scaling.law_fits import Points, points
from vtscale_jax.scaling.laws import LAWS, THEORY, Law, measured_theory, on_scale
from vtscale_jax.scaling.noise import noise_of
from vtscale_jax.scaling.result import LAST_VALUE
from vtscale_jax.scaling.scores import Series

Verdict = Literal["predicts", "fails", "cannot be checked"]
MEASURED = "theory, Υ measured"


class Check(NamedTuple):
    """The theory beside other laws on the scores of one series.

    `source` names the divergence result, `fitted_m` and `predicted_m` are the M on
    both sides of the cut, `beyond` those at which Υ is not known, `not_positive` those
    whose score has no logarithm. `errors` are mean |predicted − score| / score by law.
    It `predicts` if no law that knows nothing of hidden states, nor the last value, has
    a smaller error.
    """

    source: str
    inputs: str
    metric: str
    fitted_m: tuple[int, ...] = ()
    predicted_m: tuple[int, ...] = ()
    beyond: tuple[int, ...] = ()
    not_positive: tuple[int, ...] = ()
    c: float = float("nan")
    beta: float = float("nan")
    errors: Mapping[str, float] = MappingProxyType({})
    verdict: Verdict = "cannot be checked"
    sentence: str = ""


def check(
    series: Series,
    upsilon: Mapping[int, float],
    source: str,
    *,
    cut: int | None = None,
    huber: float | None = None,
) -> Check:
    """The theory with Υ(n) of a divergence result, beside the other laws.

    `cut` is the largest M that is fitted; by default a quarter of the largest M of
    which Υ is known. `huber` is the bend of Huber's loss, None for squares.
    """
    usable = (series.score > 0) & np.isin(series.m, list(upsilon))
    beyond = tuple(int(m) for m in series.m if m not in upsilon)
    not_positive = tuple(int(m) for m in series.m[series.score <= 0])
    given = points(series, noise_of(series, huber), usable)
    if cut is None:
        cut = comparison.default_cut(given.m) if usable.any() else None
    known = given.m <= (cut or 0)
    bare = Check(
        source,
        series.inputs,
        series.metric,
        beyond=beyond,
        not_positive=not_positive,
    )
    sides = tuple(tuple(int(m) for m in given.m[side]) for side in (known, ~known))
    left_out = _left_out(beyond, not_positive)
    not_checked = f"{series.name}: not checked with {source}: "
    if 1 not in upsilon:
        why = f"{not_checked}it has no Υ(1), which fixes c.{left_out}"
        return bare._replace(sentence=why)
    if known.sum() < 2 or known.all():
        why = (
            f"{not_checked}of the M of which Υ is known, {len(sides[0])} can be fitted "
            f"and {len(sides[1])} predicted.{left_out}"
        )
        return bare._replace(fitted_m=sides[0], predicted_m=sides[1], sentence=why)
    law = measured_theory(upsilon)
    best = points(given.series, given.noise, known).best(law)
    found = {name: float(v[0]) for name, v in law.estimates(best.u).items()}
    errors = {MEASURED: _error(law, given, known)}
    if not np.isfinite(errors[MEASURED]):
        why = f"{not_checked}no curve of the theory stays on the scale.{left_out}"
        return bare._replace(fitted_m=sides[0], predicted_m=sides[1], sentence=why)
    for other in LAWS.values():
        if other.name != THEORY.name:
            errors[other.name] = _error(on_scale(other, given.upper), given, known)
    score = given.series.score
    last = np.full((~known).sum(), score[known][-1])
    errors[LAST_VALUE] = comparison.relative_error(last, score[~known])
    verdict, sentence = _judge(series, source, errors, sides, found["beta"])
    return bare._replace(
        fitted_m=sides[0],
        predicted_m=sides[1],
        c=found["c"],
        beta=found["beta"],
        errors=errors,
        verdict=verdict,
        sentence=sentence + left_out,
    )


def _left_out(beyond: tuple[int, ...], not_positive: tuple[int, ...]) -> str:
    """The scores that the check does not use, in words."""
    told = []
    if beyond:
        told.append(f"M = {', '.join(map(str, beyond))}, where Υ is not known")
    if not_positive:
        of = ", ".join(map(str, not_positive))
        told.append(f"M = {of}, where the score is not above 0")
    return f" Left out: {'; '.join(told)}." if told else ""


def _error(law: Law, given: Points, known: np.ndarray) -> float:
    score = given.series.score
    guess = comparison.predicted(law, given.m, score, given.noise, known, given.upper)
    return comparison.relative_error(guess, score[~known])


def _judge(
    series: Series,
    source: str,
    errors: Mapping[str, float],
    sides: tuple[tuple[int, ...], ...],
    beta: float,
) -> tuple[Verdict, str]:
    """The verdict, and a sentence with all that it rests on."""
    theory = errors[MEASURED]
    others = {k: v for k, v in errors.items() if k != MEASURED and np.isfinite(v)}
    best = min(others, key=others.__getitem__)
    fitted, predicted = (", ".join(map(str, side)) for side in sides)
    told = (
        f"{series.name}, Υ of {source}: with β = {beta:.3g} from M = {fitted}, the "
        f"theory misses M = {predicted} by {theory:.1%}; the last value by "
        f"{errors[LAST_VALUE]:.1%}"
    )
    if best != LAST_VALUE:
        told += f", {best} by {others[best]:.1%}"
    if theory <= others[best]:
        return "predicts", f"{told}. Nothing that was tried predicts better."
    if theory > errors[LAST_VALUE]:
        return "fails", f"{told}. It fails: repeating the last value is better."
    return "fails", f"{told}. It fails: the {best} law is better, which knows no Υ."
