"""The four criteria that a generated text must meet (spec: data, section 7).

Both texts are stripped and cut into words by NLTK. In this order, equality passing:

1. both texts have at least `min_tokens` words;
2. of the last `window` words of the *generated* text at least the share `min_distinct`
   differ from each other (a model that repeats itself without end fails);
3. the numbers of words differ by at most `max_length_gap` of the larger one;
4. the cosine of the two texts' embeddings is at least `min_similarity`.

The authors' class tests 2 on the original text, since two of its arguments are swapped,
and mends that by a second pass over some of the data. Here it is the generated text.

Words are those of NLTK's `word_tokenize`, except that its sentence splitter is an
untrained Punkt, which needs no download. The trained one knows abbreviations, frequent
sentence starters and collocations of English, the untrained one none: it ends a
sentence at every full stop before white space, and the word splitter then takes the
stop off. So "Mr. Smith came." is `Mr . Smith came .` here and `Mr. Smith came .` there:
each abbreviation that the trained one knows counts one word more here.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

TOO_SHORT = "too short"
REPETITIVE = "repeats itself"
LENGTHS_APART = "lengths too far apart"
DISSIMILAR = "texts too dissimilar"


class ThresholdError(ValueError):
    """A threshold that no text, or every text, would meet."""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Limits of the four criteria; see the module. Numbers of words, and shares.

    `min_similarity` is a cosine of all-mpnet-base-v2; other encoders have other scales.
    """

    min_tokens: int = 10
    min_distinct: float = 0.12
    window: int = 256
    max_length_gap: float = 0.2
    min_similarity: float = 0.7

    def __post_init__(self) -> None:
        ranges = {
            "min_tokens": (1, None),
            "min_distinct": (0, 1),
            "window": (1, None),
            "max_length_gap": (0, 1),
            "min_similarity": (-1, 1),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            # Written so that NaN, of which every comparison is False, fails.
            if not (low <= value and (high is None or value <= high)):
                expected = f"{low} or more" if high is None else f"{low} to {high}"
                raise ThresholdError(f"--{name} is {value}, expected {expected}.")


# The columns of the specification's table.
PRESETS = {
    "main": Thresholds(),
    "formula": Thresholds(max_length_gap=0.7, min_similarity=0.5),
    "class_default": Thresholds(max_length_gap=0.1, min_similarity=0.5),
}


class Measured(NamedTuple):
    """Values of a pair of texts; `similarity` is None until it was measured."""

    generated_tokens: int
    original_tokens: int
    distinct: float
    length_gap: float
    similarity: float | None = None


def words(text: str) -> list[str]:
    """The words of a text, stripped: see the module about what a word is.

    >>> words(" Mr. Smith isn't in. ")
    ['Mr', '.', 'Smith', 'is', "n't", 'in', '.']
    """
    sentences, splitter = _nltk()
    return [
        word
        for sentence in sentences.tokenize(text.strip())
        for word in splitter.tokenize(sentence)
    ]


def distinct_share(tokens: Sequence[str], window: int) -> float:
    """Different words ÷ words among the last `window`; 0 where there is none.

    >>> distinct_share(["a", "b", "b", "b"], 2)
    0.5
    """
    last = tokens[-window:]
    return len(set(last)) / len(last) if last else 0.0


def length_gap(first: int, second: int) -> float:
    """|first − second| ÷ the larger; 0 for two empty texts.

    >>> length_gap(8, 10)
    0.2
    """
    longer = max(first, second)
    return abs(first - second) / longer if longer else 0.0


def measure(generated: str, original: str, window: int) -> Measured:
    """All that the words of a pair say."""
    ours, theirs = words(generated), words(original)
    return Measured(
        len(ours),
        len(theirs),
        distinct_share(ours, window),
        length_gap(len(ours), len(theirs)),
    )


def rejection(values: Measured, limits: Thresholds) -> str | None:
    """Why a pair is rejected: the first criterion that it does not meet, or None.

    The last criterion is left out while `similarity` is None.
    """
    if min(values.generated_tokens, values.original_tokens) < limits.min_tokens:
        return TOO_SHORT
    if values.distinct < limits.min_distinct:
        return REPETITIVE
    if values.length_gap > limits.max_length_gap:
        return LENGTHS_APART
    if values.similarity is not None and values.similarity < limits.min_similarity:
        return DISSIMILAR
    return None


@functools.cache
def _nltk() -> tuple:
    # NLTK takes seconds to import, and --help needs none of it.
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()
