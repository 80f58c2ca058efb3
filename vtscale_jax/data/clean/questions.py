"""The question that asks for a page's text, put together from lists.

The authors' lists have 15 verbs, 7 determiners, 6 nouns and 3 purposes (two spellings
of Markdown and a phrase on LaTeX equations), and a full stop with probability 0.7
(spec: data, section 7). Of the words only these numbers are known: these are our own.
"""

import hashlib
import json

import numpy as np

VERBS = (
    *("Convert", "Transcribe", "Transform", "Turn", "Rewrite", "Render", "Express"),
    *("Put", "Change", "Translate", "Reproduce", "Write out", "Parse", "Recast"),
    "Type out",
)
DETERMINERS = ("the", "this", "the given", "the shown", "the above", "the whole", "my")
NOUNS = ("page", "document", "image", "picture", "text", "scan")
PURPOSES = ("into Markdown", "into markdown", "into text with LaTeX equations")
STOP_PROBABILITY = 0.7
SEED = 42


def question(image: str, seed: int = SEED) -> str:
    """The question about one image: a function of seed and image alone, so that it does
    not depend on which other pages are kept.

    >>> question("a.png") == question("a.png")
    True
    """
    key = hashlib.sha256(json.dumps([seed, image]).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:16], "big"))
    parts = [
        words[int(rng.integers(len(words)))]
        for words in (VERBS, DETERMINERS, NOUNS, PURPOSES)
    ]
    stop = "." if rng.random() < STOP_PROBABILITY else ""
    return " ".join(parts) + stop
