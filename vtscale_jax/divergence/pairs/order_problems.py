"""Made-up questions about order: a timetable, a table of sales, who is the tallest.

As in `amount_problems`, every function gives a `Problem`.
"""

from vtscale_jax.divergence.pairs.amount_problems import NAMES
from vtscale_jax.divergence.pairs.telling import (
    Draws,
    Problem,
    Solution,
    ordinal,
)

PLACES = (
    *("Ashford", "Berwick", "Corby", "Dunmore", "Elgin", "Fairlie", "Gosport"),
    *("Harwich", "Ilford", "Kendal", "Ludlow", "Malton"),
)
SHOPS = ("North", "South", "East", "West", "Harbour", "Station", "Market")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday")
# More, less, most, and the two ends of the row.
SCALES = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("heavier", "lighter", "heaviest", "lightest"),
)


def clock(minutes: int) -> str:
    """Minutes after midnight as "08:05"."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def journey(draws: Draws) -> Problem:
    """When a train arrives, after several rides with waits between them."""
    vehicle = draws.pick(("train", "bus", "ferry"))
    rides = [draws.number(15, 75) for _ in range(draws.number(5, 6))]
    waits = [draws.number(3, 17) for _ in rides[1:]]
    start = draws.number(5 * 60, 12 * 60)
    stops = draws.some(PLACES, len(rides) + 1)
    told = [
        f"The ride from {stops[i]} to {stops[i + 1]} takes {ride} minutes"
        + (f", and the stop there {waits[i]} minutes." if i < len(waits) else ".")
        for i, ride in enumerate(rides)
    ]
    question = (
        f"A {vehicle} leaves {stops[0]} at {clock(start)}. {' '.join(told)} "
        + draws.pick(("When does it arrive", "At what time is it there, that is,"))
        + f" in {stops[-1]}?"
    )
    wordings = draws.some((0, 1), 2)
    slip = draws.pick(("no waits", "first ride", "twice"))
    plan = (vehicle, stops, rides, waits, start)
    return Problem(
        question,
        _journey(*plan, wordings[0], ""),
        _journey(*plan, wordings[1], slip),
    )


def _journey(
    vehicle: str,
    stops: list[str],
    rides: list[int],
    waits: list[int],
    start: int,
    wording: int,
    slip: str,
) -> Solution:
    plans = {
        "": (
            f"The {vehicle} needs time for the rides and for the stops between them.",
            "Two things pass on the clock, the minutes on the way and those at stops.",
        ),
        "no waits": (
            "A stop is part of the ride that it follows, so it takes no extra time.",
            "Only the rides count here, because the stops are included in them.",
        ),
        "first ride": (
            f"At {clock(start)} the {vehicle} is in {stops[1]}, so we begin there.",
            f"The time given holds for {stops[1]}, and the first ride is over by then.",
        ),
        "twice": (
            "Each stop counts twice, once for getting off and once for getting on.",
            "People leave and enter at stops, so their minutes are taken two times.",
        ),
    }
    first = 1 if slip == "first ride" else 0
    times = {"no waits": 0, "twice": 2}.get(slip, 1)
    waits = [wait * times for wait in waits]
    now, steps = start, []
    if wording == 0:
        for place in range(first, len(rides)):
            if place > 0 and waits[place - 1]:
                now += waits[place - 1]
                steps.append(
                    f"it stays there for {waits[place - 1]} minutes and goes on at "
                    f"{clock(now)}."
                )
            before, now = now, now + rides[place]
            steps.append(
                f"from {clock(before)}, {rides[place]} minutes of travel lead to "
                f"{clock(now)} in {stops[place + 1]}."
            )
    else:
        used = rides[first:]
        riding, waiting = sum(used), sum(waits)
        sums = " + ".join(map(str, used))
        steps.append(f"the rides take {sums} = {riding} minutes in all.")
        if waiting:
            sums = " + ".join(map(str, waits))
            steps.append(f"the stops come to {sums} = {waiting} minutes.")
        total = riding + waiting
        steps += [
            f"as a whole, {riding} + {waiting} = {total} minutes go by.",
            f"in hours, this is {total // 60} h and {total % 60} min, since {total} - "
            f"{total // 60 * 60} = {total % 60}.",
            f"the hours move the clock from {clock(start)} to "
            f"{clock(start + total // 60 * 60)}.",
            f"the other {total % 60} minutes move it on to {clock(start + total)}.",
        ]
        now = start + total
    value = clock(now)
    answer = f"The {vehicle} is in {stops[-1]} at {value}."
    return Solution(plans[slip][wording], tuple(steps), answer, value)


def table(draws: Draws) -> Problem:
    """Which shop sold most, and how many more than the one that sold least."""
    while True:
        shops = draws.some(SHOPS, draws.number(6, 7))
        days = DAYS[: draws.number(3, 4)]
        sold = {shop: [draws.number(8, 95) for _ in days] for shop in shops}
        slip = draws.pick(("first day", "best day", "last day"))
        scores = [_scores(sold, one) for one in ("", slip)]
        # A tie has no answer; and a slip that changes nothing is none.
        ties = any(len(set(s.values())) < len(s) for s in scores)
        if not ties and _winner(scores[0]) != _winner(scores[1]):
            break
    rows = [f"{shop} | {' | '.join(map(str, sold[shop]))}" for shop in shops]
    ask = draws.pick(
        (
            "Which shop sold the most over all days, and how many more than the shop "
            "that sold the least?",
            "Taking all days together, which shop comes out on top, and what is its "
            "lead over the last one?",
        )
    )
    question = "\n".join([f"shop | {' | '.join(days)}", *rows, ask])
    wordings = draws.some((0, 1), 2)
    return Problem(
        question,
        _table(days, sold, wordings[0], ""),
        _table(days, sold, wordings[1], slip),
    )


def _scores(sold: dict[str, list[int]], slip: str) -> dict[str, int]:
    score = {
        "": sum,
        "first day": lambda row: row[0],
        "last day": lambda row: row[-1],
        "best day": max,
    }[slip]
    return {shop: score(row) for shop, row in sold.items()}


def _winner(scores: dict[str, int]) -> tuple[str, int]:
    best = max(scores, key=lambda shop: scores[shop])
    return best, scores[best] - min(scores.values())


def _table(
    days: tuple[str, ...], sold: dict[str, list[int]], wording: int, slip: str
) -> Solution:
    plans = {
        "": (
            "Each row of the table has to be added up before shops are compared.",
            "What counts is a shop's total, so the numbers of its row are summed.",
        ),
        "first day": (
            f"The column of {days[0]} decides, because it is the first one.",
            f"To compare shops it is enough to look at {days[0]}.",
        ),
        "last day": (
            f"The column of {days[-1]} has the final numbers, so it decides.",
            f"By {days[-1]} everything is counted, so only that column matters.",
        ),
        "best day": (
            "The shop with the largest single number in its row is the best one.",
            "A shop is as good as its best day, so that number is taken.",
        ),
    }
    scores = _scores(sold, slip)
    steps = []
    for shop in sold if wording == 0 else list(sold)[::-1]:
        row, score = sold[shop], scores[shop]
        sums = " + ".join(map(str, row))
        where = days[row.index(score)] if slip == "best day" else days[0]
        texts = {
            "": (
                f"the {shop} shop has {sums} = {score}.",
                f"adding up the row of {shop} gives {sums} = {score} pieces.",
            ),
            "best day": (
                f"the {shop} shop has its best day on {where}, when it sold {score}.",
                f"in the row of {shop}, the {score} of {where} is the largest number.",
            ),
        }
        day = days[0] if slip == "first day" else days[-1]
        column = (
            f"the {shop} shop sold {score} on {day}, so it counts {score}.",
            f"in the row of {shop} we read {score} for {day}, which is its score.",
        )
        steps.append(texts.get(slip, column)[wording])
    order = sorted(scores, key=lambda shop: -scores[shop])
    ranked = [f"{shop} ({scores[shop]})" for shop in order]
    best, lead = _winner(scores)
    most, least = scores[best], min(scores.values())
    steps += [
        f"sorted from most to least this is {', '.join(ranked)}."
        if wording == 0
        else f"from the bottom up we have {', '.join(ranked[::-1])}.",
        f"the first of them, {best}, is ahead of the last, {order[-1]}."
        if wording == 0
        else f"nobody is below {order[-1]}, and nobody above {best}.",
        f"the difference between them is {most} - {least} = {lead}.",
    ]
    value = f"{best} by {lead}"
    return Solution(
        plans[slip][wording], tuple(steps), f"The winner is {value}.", value
    )


def ranking(draws: Draws) -> Problem:
    """Who is the k-th in a row that is known by comparisons of neighbours."""
    more, less, most, least = draws.pick(SCALES)
    while True:
        row = draws.some(NAMES, draws.number(8, 9))
        clues = [
            (better, worse, draws.number(0, 1))
            for better, worse in zip(row, row[1:], strict=False)
        ]
        clues = draws.some(clues, len(clues))
        mentioned = [
            name for a, b, turned in clues for name in ((b, a) if turned else (a, b))
        ]
        mentioned = list(dict.fromkeys(mentioned))
        place = draws.number(2, len(row) - 1)
        slip = draws.pick(("wrong end", "as mentioned"))
        wrong = row[::-1] if slip == "wrong end" else mentioned
        if wrong[place - 1] != row[place - 1]:
            break
    told = [
        f"{b} is {less} than {a}." if turned else f"{a} is {more} than {b}."
        for a, b, turned in clues
    ]
    question = f"{' '.join(told)} " + draws.pick(
        (
            f"Who is the {ordinal(place)} {most} of them?",
            f"When they stand in a row, the {most} first, who is the {ordinal(place)} "
            f"{most}?",
        )
    )
    wordings = draws.some((0, 1), 2)
    name = row[place - 1]
    right = _ranked(row, clues, (more, less, most, least), place, wordings[0])
    if slip == "wrong end":
        texts = (
            f"The row begins with the {least}, and we count from that end.",
            f"Counting starts at the {least} person and goes up.",
        )
        reverse = [(b, a, 1 - turned) for a, b, turned in clues]
        words = (less, more, least, most)
        found = _ranked(row[::-1], reverse, words, place, wordings[1])
    else:
        texts = (
            "The sentences name the people in order, so it is enough to list them.",
            "Whoever is mentioned earlier stands further ahead in the row.",
        )
        found = _as_mentioned(mentioned, clues, place, wordings[1])
    answer = f"The {ordinal(place)} {most} is {{}}."
    return Problem(
        question,
        right._replace(answer=answer.format(name), value=name),
        found._replace(
            plan=texts[wordings[1]],
            answer=answer.format(wrong[place - 1]),
            value=wrong[place - 1],
        ),
    )


def _ranked(
    row: list[str],
    clues: list[tuple[str, str, int]],
    words: tuple[str, str, str, str],
    place: int,
    wording: int,
) -> Solution:
    more, less, most, least = words
    plan = (
        f"Every sentence puts one person before another, the {more} one first.",
        f"The comparisons link up to one row, from the {most} to the {least}.",
    )[wording]
    steps = []
    if wording == 0:
        steps += [
            f"we read that {a} comes before {b}, being {more}." for a, b, _ in clues
        ]
        steps.append(f"nobody comes before {row[0]}, so the row starts there.")
        steps.append(f"following the links gives {', '.join(row)}.")
    else:
        steps.append(f"{row[0]} is never behind anybody, and therefore goes first.")
        steps += [
            f"right behind {a} we find {b}, who is {less} than {a}."
            for a, b in zip(row, row[1:], strict=False)
        ]
        steps.append(f"nobody is left behind {row[-1]}, so all {len(row)} are placed.")
    steps.append(f"number {place} in this row is {row[place - 1]}.")
    return Solution(plan, tuple(steps), "", "")


def _as_mentioned(
    mentioned: list[str], clues: list[tuple[str, str, int]], place: int, wording: int
) -> Solution:
    steps = []
    seen: list[str] = []
    for number, (a, b, turned) in enumerate(clues, 1):
        names = (b, a) if turned else (a, b)
        new = [name for name in names if name not in seen]
        seen += new
        if new:
            who = " and ".join(new)
            steps.append(
                f"sentence number {number} brings in {who}."
                if wording == 0
                else f"{who} can be added from the {ordinal(number)} sentence."
            )
    steps.append(f"written down like this, the row is {', '.join(mentioned)}.")
    steps.append(
        f"it has {len(mentioned)} people, and number {place} is the one asked for."
    )
    steps.append(f"counting up to {place} we come to {mentioned[place - 1]}.")
    return Solution("", tuple(steps), "", "")
