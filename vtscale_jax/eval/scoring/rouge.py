"""ROUGE-L of captions: the longest common subsequence with a reference.

As in pycocoevalcap 1.2: tokens are what single spaces separate, so that two spaces in a
row hold an empty token.
"""

from collections.abc import Sequence

BETA = 1.2


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """(1 + b²) P R / (R + b² P) with b = 1.2, from 0 to 1.

    P is the largest share of the prediction's tokens in a common subsequence, R that of
    a reference's; the two may come from different references.
    """
    said = prediction.split(" ")
    precision = recall = 0.0
    for reference in references:
        tokens = reference.split(" ")
        common = common_length(said, tokens)
        precision = max(precision, common / len(said))
        recall = max(recall, common / len(tokens))
    if not (precision and recall):
        return 0.0
    weight = BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = best[place]
            best[place] = (
                diagonal + 1 if token == other else max(above, best[place - 1])
            )
            diagonal = above
    return best[-1]
