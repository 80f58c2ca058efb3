"""Made-up questions about amounts: a bill, measures to convert, a recipe to scale.

Every function gives a `Problem` that depends on its draws only. The two solutions have
different wordings, and mostly go through things in opposite order.
"""

from vtscale_jax.divergence.pairs.telling import (
    Draws,
    Problem,
    Solution,
    listed,
)

NAMES = (
    *("Maya", "Omar", "Lena", "Jonas", "Priya", "Felix", "Nora", "Tomas", "Aisha"),
    *("Victor", "Greta", "Hugo", "Ines", "Karl", "Dalia", "Ruben"),
)
GOODS = (
    *("notebooks", "pens", "folders", "candles", "mugs", "apples", "postcards"),
    *("batteries", "towels", "plants", "lamps", "baskets", "brushes", "cushions"),
)
# Small unit, large unit, how many of the first make one of the second, what is counted,
# wrong numbers that people take for it.
UNITS = (
    ("grams", "kilograms", 1000, "weigh", (100, 500)),
    ("centimetres", "metres", 100, "measure", (1000, 10)),
    ("millilitres", "litres", 1000, "hold", (100, 500)),
    ("minutes", "hours", 60, "last", (100, 30)),
)
MEASURED = {
    "weigh": ("the sack of rice", "the bag of flour", "the crate of pears")
    + ("the box of nails", "the tin of tea", "the jar of honey"),
    "measure": ("the red ribbon", "the blue ribbon", "the green rope")
    + ("the long shelf", "the copper wire", "the garden hose"),
    "hold": ("the big pot", "the glass jug", "the kettle")
    + ("the bucket", "the water tank", "the thermos"),
    "last": ("the opening talk", "the film", "the workshop")
    + ("the concert", "the guided tour", "the lecture"),
}
DISHES = {
    "vegetable soup": ("lentils", "carrots", "potatoes", "leeks", "celery", "tomatoes"),
    "fruit cake": ("flour", "sugar", "butter", "raisins", "almonds", "cherries"),
    "pasta salad": ("pasta", "olives", "peppers", "cheese", "beans", "cucumber"),
    "rice bowl": ("rice", "spinach", "tofu", "mushrooms", "peas", "cashews"),
}


def bill(draws: Draws) -> Problem:
    """What is left of a note after buying several things with a coupon."""
    name = draws.pick(NAMES)
    goods = draws.some(GOODS, draws.number(5, 6))
    lines = [(draws.number(2, 9), good, draws.number(2, 12)) for good in goods]
    off = draws.number(3, 15)
    total = sum(number * price for number, _, price in lines)
    plain = sum(number + price for number, _, price in lines)
    note = 50 * (1 + (max(total, plain) + off) // 50)
    things = listed([f"{n} {good} at ${price} each" for n, good, price in lines])
    question = draws.pick(
        (
            f"{name} buys {things}. A coupon takes ${off} off the total, and {name} "
            f"pays with notes worth ${note}. How much change is due?",
            f"In a shop {name} chooses {things}. A coupon takes ${off} off the total. "
            f"{name} hands over ${note}. How many dollars come back?",
        )
    )
    wordings = draws.some((0, 1), 2)
    slip = draws.pick(("added", "lots", "fee"))
    return Problem(
        question,
        _bill(name, lines, off, note, wordings[0], ""),
        _bill(name, lines, off, note, wordings[1], slip),
    )


def _bill(
    name: str,
    lines: list[tuple[int, str, int]],
    off: int,
    note: int,
    wording: int,
    slip: str,
) -> Solution:
    plans = {
        "": (
            "Every number of things has to be multiplied by the price of one.",
            "Each price is for a single item, so it counts as often as the item does.",
        ),
        "added": (
            "For each kind of item, the number and the price have to be added up.",
            "A number of things and a price on one line of the bill make a sum.",
        ),
        "lots": (
            "Each price covers the whole lot, however many things are in it.",
            "How many things there are does not matter: a price is for all of them.",
        ),
        "fee": (
            "A coupon has to be bought, so its price goes on top of the bill.",
            "The coupon is one more thing to pay for, and counts like the others.",
        ),
    }
    sign = {"added": "+"}.get(slip, "×")
    steps, costs = [], []
    for number, good, price in lines if wording == 0 else lines[::-1]:
        cost = number + price if slip == "added" else number * price
        cost = price if slip == "lots" else cost
        costs.append(cost)
        if slip == "lots":
            texts = (
                f"the {good} are {cost} dollars in all.",
                f"for {good}, {cost} dollars is what the bill comes to.",
            )
            steps.append(texts[wording])
        elif wording == 0:
            steps.append(f"the {good} cost {number} {sign} {price} = {cost} dollars.")
        else:
            sums = f"{number} {sign} {price} = {cost}"
            steps.append(f"for {good} we get {sums}, which is what they come to.")
    total = sum(costs)
    if wording == 0:
        sums = " + ".join(map(str, costs))
        steps.append(f"all of it together makes {sums} = {total} dollars.")
    else:
        running = costs[0]
        for cost in costs[1:]:
            steps.append(
                f"the running total goes to {running} + {cost} = {running + cost}."
            )
            running += cost
    paid = total + off if slip == "fee" else total - off
    sign = "+" if slip == "fee" else "-"
    verb = "raises" if slip == "fee" else "lowers"
    steps.append(f"the coupon {verb} that to {total} {sign} {off} = {paid} dollars.")
    change = note - paid
    steps.append(
        f"out of ${note}, {note} - {paid} = {change} dollars remain."
        if wording == 0
        else f"{name} gave {note} dollars, and {note} - {paid} = {change}."
    )
    value = f"${change}"
    return Solution(
        plans[slip][wording], tuple(steps), f"{name} gets back {value}.", value
    )


def measures(draws: Draws) -> Problem:
    """Several measures in two units each, added up in the smaller one."""
    small, large, factor, verb, wrong_factors = draws.pick(UNITS)
    things = draws.some(MEASURED[verb], draws.number(5, 6))
    most = factor - 1
    parts = [(thing, draws.number(1, 9), draws.number(2, most)) for thing in things]
    told = listed([f"{thing} {n} {large} and {m} {small}" for thing, n, m in parts])
    question = draws.pick(
        (
            f"These are measured: {told}. How many {small} do they {verb} together?",
            f"Someone wrote down: {told}. What do all of them {verb} together, in "
            f"{small}?",
        )
    )
    wordings = draws.some((0, 1), 2)
    wrong = draws.pick((*wrong_factors, 1))
    units = (small, large, verb)
    return Problem(
        question,
        _measures(parts, units, factor, True, wordings[0]),
        _measures(parts, units, wrong, False, wordings[1]),
    )


def _measures(
    parts: list[tuple[str, int, int]],
    units: tuple[str, str, str],
    factor: int,
    right: bool,
    wording: int,
) -> Solution:
    small, large, verb = units
    one = large.removesuffix("s")
    plan = (
        f"One {one} is {factor} {small}, so the {large} are turned into {small}.",
        f"Everything should be in {small}, with {factor} of them to the {one}.",
    )[wording]
    if factor == 1:
        plan = (
            f"Since {large} and {small} belong together, their numbers can be added.",
            f"There is no need to convert {large}: the plain numbers say enough.",
        )[wording]
    steps, amounts = [], []
    for thing, n, m in parts if wording == 0 else parts[::-1]:
        amount = n * factor + m
        amounts.append(amount)
        if factor == 1:
            steps.append(f"{thing} counts as {n} + {m} = {amount}.")
        elif wording == 0:
            whole = f"{n} × {factor} = {n * factor} {small}"
            steps.append(
                f"{thing} has {whole} from the {large}, and {n * factor} + {m} = "
                f"{amount}."
            )
        else:
            steps.append(f"for {thing} that means {n} × {factor} + {m} = {amount}.")
    total = sum(amounts)
    if wording == 0:
        sums = " + ".join(map(str, amounts))
        steps.append(f"the sum of these is {sums} = {total}.")
    else:
        running = amounts[0]
        for amount in amounts[1:]:
            steps.append(f"adding up, {running} + {amount} = {running + amount}.")
            running += amount
    value = f"{total} {small}"
    return Solution(plan, tuple(steps), f"Together they {verb} {value}.", value)


def recipe(draws: Draws) -> Problem:
    """The weight of a dish for another number of people."""
    dish = draws.pick(tuple(DISHES))
    foods = draws.some(DISHES[dish], draws.number(5, 6))
    people = draws.pick((2, 4, 5, 8))
    others = draws.pick([n for n in (3, 6, 7, 9, 10, 12, 15) if n > people])
    grams = [people * 5 * draws.number(2, 16) for _ in foods]
    told = listed(
        [f"{g} grams of {food}" for g, food in zip(grams, foods, strict=True)]
    )
    question = draws.pick(
        (
            f"A {dish} for {people} people takes {told}. How many grams do all "
            f"ingredients weigh together when it is made for {others} people?",
            f"For {people} people, a {dish} needs {told}. Someone cooks it for "
            f"{others} people. What is the weight of all its ingredients, in grams?",
        )
    )
    wordings = draws.some((0, 1), 2)
    slip = draws.pick(("plus", "times", "double"))
    parts = list(zip(foods, grams, strict=True))
    return Problem(
        question,
        _recipe(dish, parts, people, others, wordings[0], ""),
        _recipe(dish, parts, people, others, wordings[1], slip),
    )


def _recipe(
    dish: str,
    parts: list[tuple[str, int]],
    people: int,
    others: int,
    wording: int,
    slip: str,
) -> Solution:
    more = others - people
    plans = {
        "": (
            f"One person's share is what the recipe says, divided by {people}.",
            f"First find what a single guest eats, then serve {others} of them.",
        ),
        "plus": (
            f"There are {more} more people, so {more} grams are added to everything.",
            f"Every ingredient grows by {more} grams, one for each additional guest.",
        ),
        "times": (
            f"With {more} more people, every amount is multiplied by {more}.",
            f"The {more} additional guests mean {more} times as much of everything.",
        ),
        "double": (
            f"A recipe for more people is doubled, whether they are {others} or fewer.",
            "More guests than planned simply means twice the amount of everything.",
        ),
    }
    steps, amounts = [], []
    for food, grams in parts if wording == 0 else parts[::-1]:
        share = grams // people
        if slip == "":
            amount = share * others
            texts = (
                f"of {food}, one person has {grams} / {people} = {share} grams, and "
                f"{share} × {others} = {amount}.",
                f"for the {food} it is {grams} / {people} = {share} grams a head, so "
                f"{others} × {share} = {amount} grams in all.",
            )
        elif slip == "plus":
            amount = grams + more
            texts = (
                f"of {food} we then need {grams} + {more} = {amount} grams instead.",
                f"the amount of {food} goes up to {grams} + {more} = {amount}.",
            )
        else:
            times = more if slip == "times" else 2
            amount = grams * times
            texts = (
                f"of {food} we then need {grams} × {times} = {amount} grams instead.",
                f"the amount of {food} goes up to {times} × {grams} = {amount}.",
            )
        amounts.append(amount)
        steps.append(texts[wording])
    total = sum(amounts)
    if wording == 0:
        sums = " + ".join(map(str, amounts))
        steps.append(f"everything in the bowl weighs {sums} = {total} grams.")
    else:
        running = amounts[0]
        for amount in amounts[1:]:
            steps.append(f"on the scales, {running} + {amount} = {running + amount}.")
            running += amount
    value = f"{total} grams"
    answer = f"The {dish} for {others} people takes {value} of ingredients."
    return Solution(plans[slip][wording], tuple(steps), answer, value)
