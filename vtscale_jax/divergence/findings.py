"""What a result says, in plain sentences and in one row of a table.

    findings(result)[0].text -> "Regime: linear; n_balance = 4.21 (3.9 to 4.6). …"

All numbers are those of the result file. What speaks against the theory is said as
plainly as what speaks for it.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from vtscale_jax.divergence import theory
from vtscale_jax.divergence.fits import fit_power
from vtscale_jax.divergence.result import LEAST_COUNT, Result

Tone = Literal["good", "bad", "plain"]


class Finding(NamedTuple):
    """A sentence, and whether it speaks for the theory, against it, or neither."""

    tone: Tone
    text: str


class Cell(NamedTuple):
    """A cell of the table: what it shows, what it is sorted by (numbers as text; empty
    where there is none), and whether it shows a failure."""

    text: str
    value: str
    bad: bool = False


COLUMNS = (
    *("model", "pairs", "longest n", "regime", "n_balance", "ψ_equal", "ψ within"),
    *("ψ between", "within − between", "error λ√Υ", "error √n", "error n"),
    *("error power law", "bound", "null p"),
)
_ERRORS = {
    "relative_rmse": "λ√Υ(n)",
    "relative_rmse_sqrt_n": "√n",
    "relative_rmse_n": "n",
    "relative_rmse_power": "a free power law",
}
NEAR = 0.1  # exponents that differ by no more are taken for the same
MANY_LINES = 12  # line numbers of bad rows that are written out


def findings(result: Result) -> tuple[Finding, ...]:
    """The sentences about one result, the most important first."""
    fitted = result.fits.get("symmetric")
    if fitted is None:
        theory = (Finding("plain", "No theory was fitted to this measurement."),)
    else:
        last_n = result.fits["last_n"]
        regime, bound = _regime(fitted, last_n), _bound(fitted, last_n)
        theory = (regime, _fit(result, fitted), bound, _excess(result, fitted))
    after = (_null(result), _pairs(result), _left_out(result))
    return (*theory, *_reduction(result), *after)


def cells(result: Result) -> tuple[Cell, ...]:
    """The row of one result, in the order of `COLUMNS`."""
    fitted = result.fits.get("symmetric") or {}
    counts = result.counts
    longest = result.fits.get("last_n")
    middle = Cell(interval_words(fitted, "n_balance", none="none"), "")
    if fitted.get("n_balance") is not None:
        middle = middle._replace(value=repr(float(fitted["n_balance"])))
    best = _best(fitted)
    return (
        Cell(result.name, result.name),
        _number(int(counts[0]) if len(counts) else 0),
        _number(longest),
        Cell(
            fitted.get("regime") or "–",
            fitted.get("regime") or "",
            bad=_regime(fitted, longest).tone == "bad" if fitted else False,
        ),
        middle,
        *(_number(fitted.get(name)) for name in ("psi_equal", "psi_within")),
        _number(fitted.get("psi_cross")),
        _difference(result, fitted),
        *(
            _share(fitted.get(name), name == "relative_rmse" and best != name)
            for name in _ERRORS
        ),
        _verdict(fitted, longest),
        _null_cell(result),
    )


def interval_words(fitted: dict[str, Any], name: str, *, none: str) -> str:
    """ "4.21 (3.9 to 4.6)": a number of the fits with its 95 % interval; `none` for a
    number there is not, ∞ for an end there is not."""
    value = fitted.get(name)
    text = none if value is None else number(value)
    low, high = (fitted.get("intervals") or {}).get(name) or (None, None)
    if low is None and high is None:
        return text
    ends = [number(low), "∞" if high is None else number(high)]
    return f"{text} ({ends[0]} to {ends[1]})"


def number(value: float | int | None) -> str:
    """Three digits, thousands apart; "–" for none.

    >>> number(0.01234), number(12345), number(None)
    ('0.0123', '12,345', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if abs(value) >= 1000 or isinstance(value, int):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def percent(value: float | int | None) -> str:
    """A share in per cent: "2.3 %"."""
    if value is None or math.isnan(value):
        return "–"
    # A space that no line is broken at.
    return f"{number(float(f'{100 * value:.2g}'))}\N{NO-BREAK SPACE}%"


def _regime(fitted: dict[str, Any], last_n: int | None) -> Finding:
    label = fitted["regime"]
    if label is None:
        return Finding("plain", fitted["regime_sentence"])
    text = f"Regime: {label}. {fitted['regime_sentence']}"
    if fitted["intervals"] is not None:
        middle = interval_words(fitted, "n_balance", none="none")
        text += f" n_balance with its 95 % interval: {middle}."
    # Constant ψ may end the bound only beyond what was measured.
    limit = fitted["bound_limit"]
    fails = None not in (limit, last_n) and math.floor(limit * (1 + 1e-9)) < last_n
    supposed = supposed_exponent(fitted, last_n)
    if supposed is not None:
        missed = percent(fitted["relative_rmse_constant"])
        found = fitted["power_exponent"]
        text += (
            f" This takes ψ for constant. Then E[D(n)] would grow like n^"
            f"{number(supposed)}; it grows like n^{number(found)}, and λ√Υ(n) with "
            f"constant ψ misses it by {missed}."
        )
        if abs(supposed - found) > NEAR:
            fails = True
            text += " So ψ is not constant here, and the regime is not what is seen."
    return Finding("bad" if fails else "plain", text)


def supposed_exponent(fitted: dict[str, Any], last_n: int | None) -> float | None:
    """The power of n that √Υ(n) with constant ψ is nearest to, over the n ≤ `last_n`
    where it exists: what `power_exponent` would be if ψ were constant. None where there
    are fewer than two such n."""
    psi = [fitted[name] for name in ("psi_equal", "psi_within", "psi_cross")]
    if last_n is None or None in psi or fitted["power_exponent"] is None:
        return None
    n = np.arange(1.0, last_n + 1)
    upsilon = theory.constant_spread(n, *psi)
    n, upsilon = n[upsilon > 0], upsilon[upsilon > 0]
    return fit_power(n, np.sqrt(upsilon)).exponent if len(n) > 1 else None


def _fit(result: Result, fitted: dict[str, Any]) -> Finding:
    own = fitted["relative_rmse"]
    if own is None:
        least = result.fits.get("least_count", LEAST_COUNT)
        if np.sum(result.counts >= least) < 2:
            why = f"fewer than two n have {least} or more pairs"
        elif fitted["num_points"] < 2:
            why = "Υ(n) > 0 at fewer than two n"
        else:
            why = "E[D(n)] is 0 wherever Υ(n) > 0"
        return Finding("plain", f"λ√Υ(n) could not be fitted: {why}.")
    errors = ", ".join(
        f"{percent(fitted[name])} for {words}"
        for name, words in _ERRORS.items()
        if name != "relative_rmse"
    )
    text = f"λ√Υ(n) misses E[D(n)] by {percent(own)} (relative RMSE), beside {errors}."
    best = _best(fitted)
    if best == "relative_rmse":
        text += " It fits best of the four; it alone is given ψ as measured at each n."
        return Finding("good", text)
    rival = "A free power law, with one number more," if "power" in best else "Plain "
    rival += "" if "power" in best else _ERRORS[best]
    return Finding("bad", f"{text} {rival} fits better.")


def _best(fitted: dict[str, Any]) -> str:
    """Which of `_ERRORS` is least; the theory's own where it is as small as another."""

    def error(name: str) -> float:
        found = fitted.get(name)
        return math.inf if found is None else found

    return min(_ERRORS, key=error)


def _bound(fitted: dict[str, Any], last_n: int | None) -> Finding:
    if last_n is None:
        return Finding("plain", "No n has enough pairs to look at the bound.")
    exceeded, exists = fitted["bound_exceeded"], fitted["upsilon_nonnegative"]
    share = fitted["largest_over_bound"]
    if exceeded:
        text = f"The bound √2·h·√Υ(n) fails: E[D(n)] is above it at {_ranges(exceeded)}"
        if share is not None and share > 1:  # Where the bound is 0 no share tells it.
            text += f", and up to {_times(share)} times it"
        return Finding("bad", f"{text}.")
    if exists == [[1, last_n]]:
        text = f"The bound √2·h·√Υ(n) holds for all n up to {last_n}"
        return Finding("good", f"{text}: E[D(n)] is at most {percent(share)} of it.")
    if not exists:
        return Finding("bad", "There is no bound: Υ(n) is negative wherever measured.")
    text = f"The bound exists only at {_ranges(exists)} of n ≤ {last_n}"
    return Finding("bad", f"{text}: elsewhere Υ(n) is negative. Where it is, it holds.")


def _times(share: float) -> str:
    """How many times something that is more than once: 1.002, never 1."""
    # So many decimals that two digits of what it is more than once are there.
    decimals = max(2, 1 - math.floor(math.log10(share - 1)))
    return f"{share:,.{decimals}f}".rstrip("0").rstrip(".")


def _reduction(result: Result) -> tuple[Finding, ...]:
    """What the curves are made of, where it is not the mean of positive parts."""
    if result.reduction == "max":
        text = "Curves are means over pairs of each pair's largest cosine (reduction "
        text += "max): Def. 1's worst case within a pair, not over all pairs."
        return (Finding("plain", text),)
    if result.reduction == "signed":
        text = "No positive part of the cosines was taken (reduction signed): negative "
        text += "ones count as they are, other than in Def. 1."
        return (Finding("plain", text),)
    return ()


def _excess(result: Result, fitted: dict[str, Any]) -> Finding:
    test, excess = result.fits.get("excess"), fitted["B"]
    if result.reduction == "max":
        text = "ψ within and ψ between cannot be compared: the largest cosine between "
        text += "the branches is one of twice as many as the largest within a branch, "
        text += "and so larger by chance alone. Their difference is not tested, and a "
        text += "bound that ends may end for that reason."
        return Finding("plain", text)
    if excess is None:
        text = "No n ≥ 2 has enough pairs to test ψ within − ψ between against 0."
        return Finding("plain", text)
    if test is None:
        text = f"ψ within − ψ between is {interval_words(fitted, 'B', none='none')}"
        text += " on average; no n ≥ 2 has enough pairs to test it against 0."
        return Finding("plain", text)
    chance = f"{_chance(test)}, farthest from 0 at n = {test['at']}"
    branch = {"text": "an answer", "vision": "an image"}.get(result.kind, "a branch")
    size = interval_words(fitted, "B", none="none")
    if not test["differs"]:
        text = f"ψ within − ψ between, {size}, cannot be told from 0 ({chance})."
        return Finding("plain", f"{text} Were it 0, the bound would grow like √n.")
    # The test is of all n, and what it found may be one n that the mean hides.
    there = float(result.curve("psi_excess").mean[test["at"] - 1])
    other = f" But at n = {test['at']} it has the other sign: {number(there)}."
    other = other if there * excess < 0 else ""
    if excess > 0:
        text = f"States are more alike within {branch} than between the two: by {size} "
        text += f"on average ({chance}).{other}"
        return Finding("bad" if other else "good", text)
    text = f"States are not more alike within {branch} than between the two, as the "
    text += f"theory supposes: the difference is {size} on average"
    return Finding("bad", f"{text}, and differs from 0 ({chance}).{other}")


def _chance(test: dict[str, Any]) -> str:
    """How often chance alone would be as far from 0; replicates tell it to 0.001."""
    p_value = test["p_value"]
    return "p ≤ 0.001" if p_value <= 0.001 else f"p = {number(p_value)}"


def _null(result: Result) -> Finding:
    if result.reduction == "max":
        text = "Null test: none with reduction max, where exchanging A and B does not "
        return Finding("plain", f"{text}make the difference 0.")
    if result.null is None:
        return Finding("plain", "Null test: not made (measure with --null).")
    test = result.null["test"]
    if test is None:
        text = "Null test: no n ≥ 2 has enough pairs for a verdict."
        return Finding("plain", text)
    chance = _chance(test)
    if test["differs"]:
        text = "Null test failed: with A and B exchanged at random the difference must "
        text += f"be 0, but is not, at n = {test['at']} most of all ({chance})"
        return Finding("bad", f"{text}. Do not trust this measurement.")
    text = "Null test passed: with A and B exchanged at random no difference is left"
    return Finding("good", f"{text} ({chance}).")


def _pairs(result: Result) -> Finding:
    counts = result.counts
    reached = np.flatnonzero(counts > 0)
    if not len(reached):
        return Finding("bad", "No pair was measured.")
    least, last = result.fits.get("least_count"), result.fits.get("last_n")
    text = f"{counts[0]:,} pairs; the longest reaches n = {reached[-1] + 1:,}"
    if least is None:
        return Finding("plain", f"{text}.")
    if last is None:
        text += f". No n has the {least} pairs that a fit needs"
        return Finding("bad", f"{text}: measure more pairs.")
    return Finding("plain", f"{text}, and {least} or more reach n = {last:,}.")


def _left_out(result: Result) -> Finding:
    bad = result.pairs.get("bad") or {}
    if not bad:
        return Finding("plain", "No row was left out.")
    lines = result.pairs.get("bad_lines") or {}
    parts = [
        f"{count:,} {reason}{_lines(lines.get(reason, ()))}"
        for reason, count in bad.items()
    ]
    total = result.pairs.get("rows")
    of = "" if total is None else f" of {total:,}"
    return Finding(
        "plain", f"Rows left out: {sum(bad.values()):,}{of}: {'; '.join(parts)}."
    )


def _lines(lines: list[int] | tuple[int, ...]) -> str:
    if not lines:
        return ""
    shown = ", ".join(str(line) for line in lines[:MANY_LINES])
    more = len(lines) - MANY_LINES
    return f" (line {shown}{f' and {more:,} more' if more > 0 else ''})"


def _ranges(stretches: list[list[int]]) -> str:
    """[[2, 3], [7, 7]] -> "n = 2–3, 7"."""
    words = [str(a) if a == b else f"{a}–{b}" for a, b in stretches[:5]]
    more = len(stretches) - 5
    return f"n = {', '.join(words)}" + (f" and {more} more" if more > 0 else "")


def _verdict(fitted: dict[str, Any], last_n: int | None) -> Cell:
    """Whether E[D(n)] keeps to the bound, and whether there is one, up to `last_n`."""
    if last_n is None or not fitted:
        return Cell("–", "")
    if fitted["bound_exceeded"]:
        return Cell("fails", "fails", bad=True)
    if fitted["upsilon_nonnegative"] == [[1, last_n]]:
        return Cell("holds", "holds")
    return Cell("ends", "ends", bad=True)


def _null_cell(result: Result) -> Cell:
    test = (result.null or {}).get("test")
    if test is None or result.reduction == "max":
        return Cell("–", "")
    return _number(test["p_value"], bad=test["differs"])


def _difference(result: Result, fitted: dict[str, Any]) -> Cell:
    """ψ within − ψ between; none where they cannot be compared."""
    if result.reduction == "max" or not fitted:
        return Cell("–", "")
    return _number(fitted["B"], bad=_excess(result, fitted).tone == "bad")


def _number(value: float | int | None, *, bad: bool = False) -> Cell:
    return Cell(number(value), "" if value is None else repr(value), bad)


def _share(value: float | int | None, bad: bool) -> Cell:
    return Cell(percent(value), "" if value is None else repr(value), bad)
