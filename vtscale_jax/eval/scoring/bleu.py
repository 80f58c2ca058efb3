"""BLEU-1 to BLEU-4 of captions, from counts that add up over images.

As in pycocoevalcap 1.2, which VLMEvalKit calls with raw texts: words are what white
space separates, nothing is lower-cased and no punctuation goes.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

N = 4
_SMALL, _TINY = 1e-9, 1e-15


class BleuCounts(NamedTuple):
    """What BLEU is made of, per image or summed: clipped matches and all n-grams of the
    prediction, [..., n]; its length and that of the closest reference, [...]."""

    correct: Float[np.ndarray, "... n"]
    guessed: Float[np.ndarray, "... n"]
    length: Float[np.ndarray, "..."]
    reference: Float[np.ndarray, "..."]


def ngrams(text: str) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to 4 words occurs, in order of length."""
    words = text.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, N + 1)
        for start in range(len(words) - n + 1)
    )


def bleu_counts(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> BleuCounts:
    """Counts of each image. A match is counted at most as often as in the reference
    that has it most; of two references equally close in length the shorter counts."""
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            most |= ngrams(text)
        length = len(prediction.split())
        correct = [0] * N
        for ngram, count in ngrams(prediction).items():
            correct[len(ngram) - 1] += min(count, most[ngram])
        guessed = [max(0, length - n) for n in range(N)]
        lengths = [len(text.split()) for text in texts]
        closest = min((abs(own - length), own) for own in lengths)[1]
        rows.append([*correct, *guessed, length, closest])
    table = np.array(rows, dtype=np.float64)
    return BleuCounts(table[:, :N], table[:, N : 2 * N], table[:, -2], table[:, -1])


def bleu(counts: BleuCounts) -> Float[np.ndarray, "... n"]:
    """BLEU-n from counts, for n = 1 to 4 on the last axis.

        (prod_k (correct_k + 1e-15) / (guessed_k + 1e-9))^(1/n), k = 1..n

    times exp(1 - 1/x) where x = (length + 1e-15) / (reference + 1e-9) is below 1.
    """
    ratios = (counts.correct + _TINY) / (counts.guessed + _SMALL)
    means = np.cumprod(ratios, axis=-1) ** (1 / np.arange(1, N + 1))
    share = (counts.length + _TINY) / (counts.reference + _SMALL)
    brevity = np.exp(np.minimum(0, 1 - 1 / share))
    return means * brevity[..., None]
