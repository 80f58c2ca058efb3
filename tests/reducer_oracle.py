"""VisPruner and VisionZip once more, in float64 and element by element, written apart
from the code; and how near each choice was to another one.

A *gap* is the least difference between two scores whose order decided something. Where
it is of the size of float32's rounding, another order is as good.
"""

import numpy as np


class Gap:
    """The least difference seen."""

    def __init__(self):
        self.least = np.inf

    def see(self, scores):
        """Scores that were put in order."""
        ordered = np.sort(np.asarray(scores, np.float64))
        if len(ordered) > 1:
            self.least = min(self.least, float(np.min(np.diff(ordered))))


def vispruner(features, cls_attention, n, r):
    """Kept patches, ascending, the important ones, and the gap."""
    f = np.asarray(features, np.float64)
    unit = f / np.sqrt((f * f).sum(1))[:, None]
    attention = np.asarray(cls_attention, np.float64)[:, 1:].mean(0)
    gap = Gap()
    gap.see(attention)
    order = sorted(range(len(f)), key=lambda patch: (-attention[patch], patch))
    important, pool = order[: int(n * r)], order[int(n * r) :]
    diverse = n - len(important)
    while diverse and len(pool) > diverse:
        first, second = pool[0::2], pool[1::2]
        like = {e: max(unit[e] @ unit[o] for o in second) for e in first}
        gap.see(list(like.values()))
        ranked = sorted(first, key=lambda e: (-like[e], first.index(e)))
        ranked = ranked[min(8, len(pool) - diverse, len(first)) :]
        pool = ranked + second
    kept = important + (pool if diverse else [])
    return sorted(kept), important, gap.least


def visionzip(hidden, cls_attention, keys, dominant, contextual):
    """The vectors, the dominant rows, and the gap."""
    x = np.asarray(hidden, np.float64)
    attention = np.asarray(cls_attention, np.float64)[:, 1:].sum(0)
    gap = Gap()
    gap.see(attention)
    order = sorted(range(1, len(x)), key=lambda row: (-attention[row - 1], row))
    kept = sorted([0, *order[: dominant - 1]])
    rest = [row for row in range(len(x)) if row not in kept]
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    metric = np.asarray(keys, np.float64).mean(0)
    metric /= np.sqrt((metric * metric).sum(1))[:, None]
    parts = {target: [] for target in targets}
    for row in rest:
        if row not in parts:
            scores = [metric[row] @ metric[target] for target in targets]
            parts[targets[int(np.argmax(scores))]].append(x[row])
            if len(scores) > 1:
                gap.see(sorted(scores)[-2:])
    merged = [
        x[target] + (np.mean(went, axis=0) if went else 0)
        for target, went in parts.items()
    ]
    return np.stack([*x[kept], *merged]), kept, gap.least
