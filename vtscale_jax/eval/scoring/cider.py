"""CIDEr-D of captions: likeness of n-grams, weighted by how rare they are.

As in pycocoevalcap 1.2 (R. Vedantam et al., CVPR 2015): the images at hand are the
corpus, so that a subset has other weights, and one image alone scores 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vtscale_jax.eval.scoring.bleu import N, ngrams

SIGMA = 6.0
_NGram = tuple[str, ...]


class _Vector(NamedTuple):
    """A caption's weights and their norm by length of n-gram; how many bigrams."""

    weights: list[dict[_NGram, float]]
    norms: list[float]
    bigrams: int


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """The CIDEr of each image, from 0 to 10.

    An n-gram weighs count * (ln images - ln max(1, images in whose references it is)).
    For each n = 1..4 and reference, Σ min(h, r) r / (|h| |r|) over the weights h of the
    prediction and r of the reference, times exp(-d²/72), d the difference in bigrams;
    mean over n, mean over references, times 10.
    """
    texts = [[ngrams(text) for text in own] for own in references]
    seen: Counter[_NGram] = Counter()
    for own in texts:
        seen.update({ngram for counts in own for ngram in counts})
    images = math.log(len(texts))
    rarity = {ngram: images - math.log(count) for ngram, count in seen.items()}

    def vector(counts: Counter[_NGram]) -> _Vector:
        weights: list[dict[_NGram, float]] = [{} for _ in range(N)]
        for ngram, count in counts.items():
            weights[len(ngram) - 1][ngram] = count * rarity.get(ngram, images)
        norms = [math.sqrt(sum(w**2 for w in own.values())) for own in weights]
        bigrams = sum(count for ngram, count in counts.items() if len(ngram) == 2)
        return _Vector(weights, norms, bigrams)

    scores = []
    for prediction, own in zip(predictions, texts, strict=True):
        said = vector(ngrams(prediction))
        total = np.zeros(N)
        for counts in own:
            total += _likeness(said, vector(counts))
        scores.append(float(np.mean(total)) / len(own) * 10)
    return scores


def _likeness(said: _Vector, reference: _Vector) -> list[float]:
    """Clipped cosine for each length of n-gram, less for another length of caption."""
    apart = said.bigrams - reference.bigrams
    penalty = math.exp(-(apart**2) / (2 * SIGMA**2))
    made = []
    for n in range(N):
        other = reference.weights[n]
        both = sum(
            min(weight, other[ngram]) * other[ngram]
            for ngram, weight in said.weights[n].items()
            if ngram in other
        )
        norms = said.norms[n] * reference.norms[n]
        made.append(both / norms * penalty if norms else both * penalty)
    return made
