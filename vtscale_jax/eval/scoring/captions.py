"""COCO captions as VLMEvalKit scores them: raw texts, no tokenizer, no lower-casing.

The official COCO tools tokenise and lower-case first, so their numbers are higher and
another metric; `official_captions` computes them under names of their own.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from vtscale_jax.eval.scoring.bleu import BleuCounts, bleu, bleu_counts
from vtscale_jax.eval.scoring.cells import (
    literal_list,
    place,
    plain,
    require,
    text_list,
)
from vtscale_jax.eval.scoring.cider import cider
from vtscale_jax.eval.scoring.intervals import intervals, point
from vtscale_jax.eval.scoring.rouge import rouge_l
from vtscale_jax.eval.scoring.verdicts import (
    Item,
    Scored,
    ScoringError,
    Version,
    commit_name,
)


def score_captions(
    task: str, rows: pd.DataFrame, predictions: Sequence[str], version: Version
) -> Scored:
    """`Bleu` (four), `ROUGE_L` and `CIDEr`, each times 100, so that CIDEr may reach
    1000. BLEU is that of all images together, the others are means over images.

    The references are the list of texts in the answer cell. An item's score is its
    CIDEr, 0 to 10; its BLEU and ROUGE-L are in the detail.

    Intervals: bootstrap over images. CIDEr's weights of n-grams stay those of all
    images, whose own uncertainty is small beside that of the mean.
    """
    require(task, rows, ("index", "answer"))
    references = [
        text_list(place(task, rows, position), literal_list(str(answer)))
        for position, answer in enumerate(rows["answer"])
    ]
    if not any(text.split() for texts in references for text in texts):
        raise ScoringError(f"{task}: no reference caption has a word in it")
    counts = bleu_counts(predictions, references)
    rouges = np.array(
        [rouge_l(said, own) for said, own in zip(predictions, references, strict=True)]
    )
    ciders = np.array(cider(predictions, references))

    def metric(weights: Float[np.ndarray, "R U"]) -> Float[np.ndarray, "R 6"]:
        together = bleu(BleuCounts(*(weights @ column for column in counts)))
        means = weights @ np.stack([rouges, ciders], axis=1)
        means /= weights.sum(1, keepdims=True)
        return np.concatenate([together, means], axis=1) * 100

    items = [
        Item(plain(index), None, own_cider, {"Bleu": own_bleu, "ROUGE_L": own_rouge})
        for index, own_cider, own_bleu, own_rouge in zip(
            rows["index"],
            ciders.tolist(),
            bleu(counts).tolist(),
            rouges.tolist(),
            strict=True,
        )
    ]
    scores, ends = (
        {"Bleu": six[:4], "ROUGE_L": six[4], "CIDEr": six[5]}
        for six in (point(metric, len(rows)), intervals(metric, len(rows)))
    )
    return Scored(scores, ends, items, 0, commit_name(version))
