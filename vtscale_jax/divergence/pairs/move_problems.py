"""Made-up questions about doing things in turn: a robot on a grid, letters of a word.

As in `amount_problems`, every function gives a `Problem`.
"""

from vtscale_jax.divergence.pairs.telling import Draws, Problem, Solution, listed

HEADINGS = ("north", "east", "south", "west")  # in the order of right turns
STEPS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
WORDS = (
    *("planet", "garden", "silver", "bridge", "copper", "window", "marble", "pencil"),
    *("forest", "candle", "orange", "basket", "thunder", "lantern", "blanket"),
    *("harvest", "chimney", "dolphin", "penguin", "compass"),
)
# What is done to the letters, and how it is put in the question.
CHANGES = {
    "reverse": "write the word backwards",
    "first to end": "move the first letter to the end",
    "double last": "write the last letter twice",
    "drop second": "remove the second letter",
    "swap ends": "swap the first and the last letter",
    "star vowels": "replace every vowel by a star (*)",
}


def robot(draws: Draws) -> Problem:
    """Where a robot ends after several walks with turns between them."""
    while True:
        start = draws.number(-5, 5), draws.number(-5, 5)
        heading = draws.pick(HEADINGS)
        walks = [draws.number(2, 9) for _ in range(draws.number(7, 9))]
        turns = [draws.pick(("left", "right")) for _ in walks[1:]]
        slip = draws.pick(("mirrored", "straight", "other way"))
        if _end(start, heading, walks, turns, "") != _end(
            start, heading, walks, turns, slip
        ):
            break
    moves = [f"walks {walks[0]} steps"]
    for turn, walk in zip(turns, walks[1:], strict=True):
        moves.append(f"turns {turn} and walks {walk} steps")
    question = (
        "On a grid, x grows to the east and y to the north. "
        f"A robot stands at ({start[0]}, {start[1]}) and faces {heading}. It "
        f"{listed(moves)}. "
        + draws.pick(("At which point does it end?", "Where is it then, as (x, y)?"))
    )
    wordings = draws.some((0, 1), 2)
    told = (start, heading, walks, turns)
    return Problem(
        question, _robot(*told, wordings[0], ""), _robot(*told, wordings[1], slip)
    )


def _legs(
    heading: str, walks: list[int], turns: list[str], slip: str
) -> list[tuple[str, int]]:
    """The heading and length of every walk."""
    place = HEADINGS.index(heading)
    if slip == "other way":
        place += 2
    legs = [(HEADINGS[place % 4], walks[0])]
    for turn, walk in zip(turns, walks[1:], strict=True):
        step = 1 if turn == "right" else -1
        place += {"mirrored": -step, "straight": 0}.get(slip, step)
        legs.append((HEADINGS[place % 4], walk))
    return legs


def _end(
    start: tuple[int, int],
    heading: str,
    walks: list[int],
    turns: list[str],
    slip: str,
) -> tuple[int, int]:
    x, y = start
    for name, walk in _legs(heading, walks, turns, slip):
        x, y = x + STEPS[name][0] * walk, y + STEPS[name][1] * walk
    return x, y


def _robot(
    start: tuple[int, int],
    heading: str,
    walks: list[int],
    turns: list[str],
    wording: int,
    slip: str,
) -> Solution:
    behind = HEADINGS[(HEADINGS.index(heading) + 2) % 4]
    side = HEADINGS[(HEADINGS.index(heading) + 1) % 4]
    plans = {
        "": (
            f"Facing {heading}, a turn to the right would point the robot {side}.",
            "Every walk changes either x or y, depending on where the robot looks.",
        ),
        "mirrored": (
            f"Facing {heading}, a turn to the left would point the robot {side}.",
            f"Turning left from {heading} means looking {side}, and so on around.",
        ),
        "straight": (
            f"The robot keeps walking {heading}, for a turn does not move it.",
            f"Turns happen on the spot, so all walks lead {heading}.",
        ),
        "other way": (
            f"A robot that faces {heading} moves {behind}, away from what it sees.",
            f"The first walk leads {behind}, opposite to where the robot looks.",
        ),
    }
    legs = _legs(heading, walks, turns, slip)
    (x, y), steps = start, []
    if wording == 0:
        for name, walk in legs:
            x, y = x + STEPS[name][0] * walk, y + STEPS[name][1] * walk
            steps.append(
                f"it goes {name} for {walk} steps, which brings it to ({x}, {y})."
            )
    else:
        names = [f"{name} {walk}" for name, walk in legs]
        steps.append(f"the walks are, in order, {listed(names)}.")
        far = {one: [walk for name, walk in legs if name == one] for one in HEADINGS}
        for name, lengths in far.items():
            sums = " + ".join(map(str, lengths))
            if not lengths:
                steps.append(f"it never goes {name}.")
            elif len(lengths) == 1:
                steps.append(f"the robot goes {name} once, for {sums} steps.")
            else:
                steps.append(f"to the {name} it goes {sums} = {sum(lengths)} steps.")
        for axis, (plus, minus) in enumerate((("east", "west"), ("north", "south"))):
            more, less = sum(far[plus]), sum(far[minus])
            end = start[axis] + more - less
            steps.append(
                f"{'xy'[axis]} begins at {start[axis]} and becomes {start[axis]} + "
                f"{more} - {less} = {end}."
            )
        x, y = _end(start, heading, walks, turns, slip)
        steps.append(f"read together, x is {x} and y is {y}.")
    value = f"({x}, {y})"
    return Solution(plans[slip][wording], tuple(steps), f"It ends at {value}.", value)


def letters(draws: Draws) -> Problem:
    """A word after several changes to its letters."""
    while True:
        word = draws.pick(WORDS)
        changes = draws.some(tuple(CHANGES), draws.number(5, 6))
        slip = draws.pick(("skipped", "backwards"))
        wrong = changes[1:] if slip == "skipped" else changes[::-1]
        if _changed(word, changes) != _changed(word, wrong):
            break
    told = [CHANGES[change] for change in changes]
    question = f'Take the word "{word}". ' + draws.pick(
        (
            f"Do this in order: {'; '.join(told)}. What do you get?",
            f"Then, one after the other, {'; '.join(told)}. What is the result?",
        )
    )
    wordings = draws.some((0, 1), 2)
    first, last = told[0], told[-1]
    plans = {
        "": (
            f"The word has {len(word)} letters, and the changes are made in order.",
            f"Starting from {_spelled(word)}, the first thing to do is to {first}.",
        ),
        "skipped": (
            f'To {first} changes nothing here, so "{word}" goes on as it is.',
            f"The first instruction, to {first}, leaves {_spelled(word)} as it was.",
        ),
        "backwards": (
            f"The last instruction is carried out first, so we {last}.",
            f"Such a list is worked off from its end, beginning with: {last}.",
        ),
    }
    return Problem(
        question,
        _letters(word, changes, plans[""][wordings[0]], wordings[0]),
        _letters(word, wrong, plans[slip][wordings[1]], wordings[1]),
    )


def _letters(word: str, changes: list[str], plan: str, wording: int) -> Solution:
    steps = []
    for change in changes:
        before, word = word, _change(word, change)
        steps.append(
            f'when we {CHANGES[change]}, "{before}" turns into "{word}".'
            if wording == 0
            else f"{CHANGES[change]}: from {_spelled(before)} we get {_spelled(word)}."
        )
    steps.append(
        f"what is left has {len(word)} characters, {_spelled(word)}."
        if wording == 0
        else f'without the hyphens that is "{word}", of {len(word)} characters.'
    )
    value = f'"{word}"'
    return Solution(plan, tuple(steps), f"The result is {value}.", value)


def _spelled(word: str) -> str:
    return "-".join(word)


def _changed(word: str, changes: list[str]) -> str:
    for change in changes:
        word = _change(word, change)
    return word


def _change(word: str, change: str) -> str:
    if change == "reverse":
        return word[::-1]
    if change == "first to end":
        return word[1:] + word[0]
    if change == "double last":
        return word + word[-1]
    if change == "drop second":
        return word[0] + word[2:]
    if change == "swap ends":
        return word[-1] + word[1:-1] + word[0]
    return "".join("*" if letter in "aeiou" else letter for letter in word)
