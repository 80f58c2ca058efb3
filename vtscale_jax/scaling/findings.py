"""What an analysis says, in plain sentences: what holds, and what does not."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from vtscale_jax.scaling.gains import Gains
from vtscale_jax.scaling.result import LAST_VALUE, Analysis, LawFit, SeriesFits
from vtscale_jax.scaling.theory_check import MEASURED, Check

Tone = Literal["good", "bad", "plain"]
NAMED = 4  # of many metrics, so many are named
STEEP = 3
AS_GOOD, RULED_OUT = 2, 10  # differences of AICc
# The paper's kinds of inputs.
KINDS = {
    "vqq": "With the question in the fusion (vqq)",
    "vq_ft": "Adapted without the question (vq_ft)",
    "vq": "The same model without the question (vq)",
}


class Finding(NamedTuple):
    """A sentence, and whether it speaks for the power law (for the theory, for fusing
    the question), against it, or neither; `about` is what it is about."""

    tone: Tone
    text: str
    about: str = ""


def findings(
    analysis: Analysis, gains: Sequence[Gains] = (), checks: Sequence[Check] = ()
) -> tuple[Finding, ...]:
    """The sentences about a table of scores: by kind of inputs, then what the question
    adds, the theory, and what was left out."""
    found: list[Finding] = []
    for inputs in analysis.scores.inputs():
        fits = [one for one in analysis.fits if one.series.inputs == inputs]
        about = KINDS.get(
            inputs, f"Scores with inputs {inputs}" if inputs else "Scores"
        )
        for part in (_growth, _steepest, _prediction, _chosen, _unexplained):
            found += [Finding(tone, text, about) for tone, text in part(fits)]
    for one in gains:
        found += [
            Finding(tone, text, "What the question adds") for tone, text in _fusion(one)
        ]
    found += [Finding(tone, text, "The theory") for tone, text in _theory(checks)]
    left_out = [Finding(tone, text, "Left out") for tone, text in _left_out(analysis)]
    return (*found, *left_out)


def by_subject(found: Sequence[Finding]) -> dict[str, list[Finding]]:
    """The same sentences by what they are about, in order."""
    groups: dict[str, list[Finding]] = {}
    for one in found:
        groups.setdefault(one.about, []).append(one)
    return groups


def extrapolation_means(fits: Sequence[SeriesFits]) -> dict[str, tuple[float, int]]:
    """The mean extrapolation error of each law, and of the last value, over the series
    in which every law of the list has one; with how many these are."""
    names = list(dict.fromkeys(name for one in fits for name in one.fits))
    names = [n for n in names if any(np.isfinite(_error(one, n)) for one in fits)]
    usable = [
        one
        for one in fits
        if np.isfinite(one.last_value_extrapolation)
        and all(np.isfinite(_error(one, name)) for name in names)
    ]
    if not usable:
        return {}
    means = {
        name: (float(np.mean([_error(one, name) for one in usable])), len(usable))
        for name in names
    }
    last = float(np.mean([one.last_value_extrapolation for one in usable]))
    return {**means, LAST_VALUE: (last, len(usable))}


def _error(one: SeriesFits, law: str) -> float:
    return one.fits[law].extrapolation if law in one.fits else float("nan")


def _growth(fits: Sequence[SeriesFits]) -> Iterator[tuple[Tone, str]]:
    """Where α can be told from 0."""
    powers = _powers(fits)
    if not powers:
        yield "plain", "The power law could not be fitted to any metric."
        return
    sure = [name for name, fit in powers.items() if fit.identified]
    unsure = [name for name, fit in powers.items() if not fit.identified]
    falling = [name for name in sure if powers[name].estimates["alpha"] > 0]
    text = f"M matters (α differs from 0 by its 95 % interval) for {len(sure)} of "
    text += f"{len(powers)} metrics"
    text += f"; not identified for {_listed(unsure)}." if unsure else "."
    yield ("good" if not unsure else "plain" if sure else "bad"), text
    if falling:
        yield "bad", f"More tokens make the score fall for {_listed(falling)}."


def _steepest(fits: Sequence[SeriesFits]) -> Iterator[tuple[Tone, str]]:
    """The metrics that grow most, and least, of those that do."""
    grow = [
        (name, fit)
        for name, fit in _powers(fits).items()
        if fit.identified and fit.estimates["alpha"] < 0
    ]
    if len(grow) < 2:
        return
    grow.sort(key=lambda one: one[1].estimates["alpha"])
    # Of few metrics, none is both among the steepest and among the flattest.
    shown = min(STEEP, len(grow) // 2)
    steep = ", ".join(_with_interval(*one) for one in grow[:shown])
    flat = ", ".join(_with_interval(*one) for one in reversed(grow[-shown:]))
    yield "plain", f"Steepest, by α: {steep}. Flattest that still grow: {flat}."


def _chosen(fits: Sequence[SeriesFits]) -> Iterator[tuple[Tone, str]]:
    """Which law AICc takes."""
    by_law: dict[str, list[str]] = {}
    for one in fits:
        if one.chosen is not None:
            by_law.setdefault(one.chosen.split("_")[0], []).append(one.series.metric)
    number = sum(map(len, by_law.values()))
    if not number:
        yield "plain", "There are too few M to compare laws by AICc."
        return
    power = len(by_law.pop("power", ()))
    behind = [_power_aicc(one) for one in fits if one.chosen is not None]
    ruled_out = sum(difference > RULED_OUT for difference in behind)
    as_good = sum(difference <= AS_GOOD for difference in behind)
    ranked = sorted(by_law.items(), key=lambda item: -len(item[1]))
    others = ", ".join(
        f"{law} for {len(of)}" + (f" ({_listed(of)})" if len(of) <= NAMED else "")
        for law, of in ranked
    )
    yield (
        "good" if 2 * power > number else "bad",
        f"AICc takes the power law for {power} of {number} metrics"
        + (f"; {others}." if others else ".")
        + f" It is as good as the best (ΔAICc ≤ {AS_GOOD}) for {as_good} and ruled out "
        f"(> {RULED_OUT}) for {ruled_out}.",
    )


def _unexplained(fits: Sequence[SeriesFits]) -> Iterator[tuple[Tone, str]]:
    """Where no law goes through the scores as near as their questions let it."""
    known = [one for one in fits if one.errors == "items" and one.chosen is not None]
    far = [
        one.series.metric
        for one in known
        if one.chosen is not None and one.fits[one.chosen].main != "items"
    ]
    if far:
        yield (
            "bad",
            f"For {len(far)} of {len(known)} metrics ({_listed(far)}) even that law "
            "leaves more than chance in the questions explains: the form is another, "
            "or trainings differ.",
        )


def _theory(checks: Sequence[Check]) -> Iterator[tuple[Tone, str]]:
    """Whether Υ of hidden states predicts scores; of many checks the sum."""
    tones: dict[str, Tone] = {"predicts": "good", "fails": "bad"}
    if len(checks) <= NAMED:
        for one in checks:
            yield tones.get(one.verdict, "plain"), one.sentence
        return
    done = [one for one in checks if one.errors]
    right = [f"{one.metric} ({one.inputs})" for one in done if one.verdict != "fails"]
    worse = sum(one.errors[MEASURED] > one.errors[LAST_VALUE] for one in done)
    text = (
        f"With β from the scores at small M, Υ of hidden states predicts larger M best "
        f"of all for {len(right)} of {len(done)} series"
    )
    text += f" ({_listed(right)})" if right else ""
    yield (
        "good" if 2 * len(right) > len(done) else "bad",
        f"{text}; for {worse} it is worse than repeating the last value.",
    )
    if len(done) < len(checks):
        number = len(checks) - len(done)
        yield "plain", f"{number} series could not be checked; fits.json says why."


def _power_aicc(one: SeriesFits) -> float:
    """How much worse the AICc of the power law is than the best."""
    law = "power_weighted" if "power_weighted" in one.fits else "power"
    if law not in one.fits or one.chosen not in one.fits:
        return float("nan")
    return one.fits[law].aicc - one.fits[one.chosen].aicc


def _prediction(fits: Sequence[SeriesFits]) -> Iterator[tuple[Tone, str]]:
    """What small M tell of large M, against repeating the last value."""
    means = extrapolation_means(fits)
    law = "power"
    if law not in means:
        return
    cuts = {one.cut for one in fits}
    cut = f"M ≤ {cuts.pop()}" if len(cuts) == 1 else "the smaller M"
    last, number = means[LAST_VALUE]
    others = [n for n in means if n not in (law, LAST_VALUE)]
    best = min(others, key=lambda name: means[name][0], default=None)
    other = "" if best is None else f", the {best} law by {means[best][0]:.1%}"
    usable = [one for one in fits if np.isfinite(_error(one, law))]
    better = sum(_error(one, law) < one.last_value_extrapolation for one in usable)
    beats = means[law][0] < last
    yield (
        "good" if beats else "bad",
        f"Fitted to {cut}, the power law misses larger M by {means[law][0]:.1%} (mean "
        f"of {number} metrics); repeating the last value misses by {last:.1%}{other}. "
        f"The power law is better than the last value in {better} of {len(usable)} "
        "metrics.",
    )


def _fusion(found: Gains) -> Iterator[tuple[Tone, str]]:
    """Where the question helps."""
    if not found.gains:
        return
    always = [g.metric for g in found.gains if g.absolute.min() > 0]
    never = [g.metric for g in found.gains if g.absolute.max() <= 0]
    share = np.mean(np.concatenate([g.absolute > 0 for g in found.gains]))
    text = (
        f"{found.more} against {found.less}: the question raises {share:.0%} of all "
        f"scores, and at every M those of {len(always)} of {len(found.gains)} metrics"
    )
    text += f" ({_listed(always)})" if always else ""
    text += f"; at no M those of {_listed(never)}" if never else ""
    yield ("good" if share > 0.5 else "bad"), f"{text}."


def _left_out(analysis: Analysis) -> Iterator[tuple[Tone, str]]:
    scores = analysis.scores
    if scores.excluded:
        number = len(scores.excluded)
        yield "plain", f"{number} scores were left out; the last table says why."
    failed = sum(len(one.failed) for one in analysis.fits)
    if failed:
        yield "plain", f"{failed} fits were not possible; the tables say why."


def _powers(fits: Sequence[SeriesFits]) -> dict[str, LawFit]:
    return {one.series.metric: one.fits["power"] for one in fits if "power" in one.fits}


def _with_interval(metric: str, fit: LawFit) -> str:
    text = f"{metric} {number(fit.estimates['alpha'])}"
    interval = fit.interval("alpha")
    if interval is None:
        return text
    return f"{text} ({number(interval.low)} to {number(interval.high)})"


def number(value: float, digits: int = 3) -> str:
    """So many digits, with a real minus; "–" for none, "∞" for no end.

    >>> number(-0.03714), number(float("nan")), number(float("inf"))
    ('−0.0371', '–', '∞')
    """
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}g}".replace("-", "−")


def _listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    listed = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return f"{listed} and {more} more" if more > 0 else listed
