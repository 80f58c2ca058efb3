"""The official COCO caption metrics, on tokenised texts; not VLMEvalKit's numbers.

Texts go through the Penn Treebank tokenizer of Stanford CoreNLP, which lower-cases and
drops punctuation, then through the BLEU, ROUGE-L and CIDEr of pycocoevalcap, which
brings the tokenizer along. It needs Java, and a folder of packages that can be written
to, since it puts its texts there.
"""

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

from vtscale_jax.eval.scoring.verdicts import ScoringError


def score_official_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """`official_Bleu` (four), `official_ROUGE_L` and `official_CIDEr`, times 100.

    Raises ScoringError where pycocoevalcap or Java is not installed, and where the
    tokenizer gives back another number of captions than it was given.
    """
    tokenizer = _library("tokenizer.ptbtokenizer").PTBTokenizer()
    if shutil.which("java") is None:
        raise ScoringError(
            "the official caption metrics need Java, and there is no program `java` on "
            "the PATH; install one (Debian: apt-get install default-jre-headless)"
        )
    said = _tokenised(tokenizer, [[prediction] for prediction in predictions])
    texts = _tokenised(tokenizer, references)
    metrics = {
        "Bleu": _library("bleu.bleu").Bleu(4),
        "ROUGE_L": _library("rouge.rouge").Rouge(),
        "CIDEr": _library("cider.cider").Cider(),
    }
    scores: dict[str, Any] = {}
    for name, metric in metrics.items():
        quiet = {"verbose": 0} if name == "Bleu" else {}
        value, _ = metric.compute_score(texts, said, **quiet)
        scaled = [100 * float(one) for one in value] if name == "Bleu" else None
        scores[f"official_{name}"] = scaled or 100 * float(value)
    return scores


def _library(module: str) -> Any:
    try:
        return importlib.import_module(f"pycocoevalcap.{module}")
    except ModuleNotFoundError as error:
        raise ScoringError(
            f"the official caption metrics need the library pycocoevalcap ({error}); "
            "install it with: pip install 'vtscale_jax[coco]'"
        ) from error


def _tokenised(tokenizer: Any, texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    """Tokenised captions by image.

    The tokenizer writes a caption per line and reads lines back, so a line break of any
    kind inside a caption would shift all that follow.
    """
    lines = {
        image: [{"caption": " ".join(text.splitlines())} for text in own]
        for image, own in enumerate(texts)
    }
    made = tokenizer.tokenize(lines)
    if [len(own) for own in lines.values()] != [len(made.get(i, [])) for i in lines]:
        raise ScoringError(
            f"the tokenizer gave back captions of {len(made)} images for {len(lines)}, "
            "or fewer of one; does `java -version` run?"
        )
    return made
