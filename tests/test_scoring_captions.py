"""Captions: BLEU, ROUGE-L and CIDEr by their rules, and beside the library."""

import math
import random
import shutil
import sys
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from vtscale_jax.eval.scoring import official_captions
from vtscale_jax.eval.scoring.bleu import BleuCounts, bleu, bleu_counts, ngrams
from vtscale_jax.eval.scoring.cider import cider
from vtscale_jax.eval.scoring.official_captions import score_official_captions
from vtscale_jax.eval.scoring.rouge import common_length, rouge_l
from vtscale_jax.eval.scoring.score import score
from vtscale_jax.eval.scoring.verdicts import ScoringError

needs_library = pytest.mark.skipif(
    find_spec("pycocoevalcap") is None,
    reason="pycocoevalcap is not installed (pip install 'vtscale_jax[coco]')",
)


def coco(references, predictions, version="paper"):
    rows = pd.DataFrame(
        {"index": range(len(references)), "answer": list(map(repr, references))}
    )
    return score("COCO_VAL", rows, predictions, version)


def summed(references, predictions):
    counts = bleu_counts(predictions, references)
    return bleu(BleuCounts(*(column.sum(0) for column in counts)))


class TestBleu:
    def test_ngrams(self):
        assert ngrams("a  b\na") == Counter(
            [("a",), ("b",), ("a",), ("a", "b"), ("b", "a"), ("a", "b", "a")]
        )

    def test_counts_are_clipped_by_the_reference_that_has_most(self):
        counts = bleu_counts(["a a a b"], [["a b", "a a c"]])
        assert counts.correct.tolist() == [[3, 2, 0, 0]]
        assert counts.guessed.tolist() == [[4, 3, 2, 1]]

    def test_ties_of_length_go_to_the_shorter(self):
        counts = bleu_counts(["a b c"] * 2, [["a", "a b c d e"], ["x" * 9, "a b c d"]])
        assert counts.reference.tolist() == [1, 4]
        assert counts.length.tolist() == [3, 3]

    def test_by_hand(self):
        found = summed([["the cat sat on a mat"]], ["the cat sat"])
        brevity = math.exp(1 - 6 / 3)
        assert found[:3] == pytest.approx([brevity] * 3, rel=1e-6)
        # No four-gram was guessed: (1e-15 / 1e-9) ^ (1/4).
        assert found[3] == pytest.approx(brevity * 1e-6**0.25, rel=1e-6)

    def test_long_predictions_have_no_penalty(self):
        found = summed([["a b"]], ["a b c d"])
        assert found[0] == pytest.approx(0.5)
        assert found[1] == pytest.approx((2 / 4 * 1 / 3) ** 0.5)

    def test_is_of_all_images_together(self):
        references, said = [["a b"], ["c d e f"]], ["a x", "c d e f"]
        assert summed(references, said)[0] == pytest.approx(5 / 6)
        assert coco(references, said).scores["Bleu"][0] == pytest.approx(500 / 6)

    def test_nothing_is_lower_cased_or_cleaned(self):
        assert bleu_counts(["A cat."], [["a cat"]]).correct[0, 0] == 0

    def test_an_empty_prediction(self):
        assert summed([["a b"]], ["  "]).tolist() == [0, 0, 0, 0]


class TestRouge:
    def test_subsequence(self):
        assert common_length("a b c d".split(), "b x d a".split()) == 2
        assert common_length([], ["a"]) == 0

    def test_by_hand(self):
        # P = 3/3 from the first, R = 2/2 from the second reference.
        assert rouge_l("a b c", ["a x b y c", "a c"]) == pytest.approx(1)
        p, r = 2 / 3, 2 / 4
        expected = (1 + 1.44) * p * r / (r + 1.44 * p)
        assert rouge_l("a b c", ["c a b d"]) == pytest.approx(expected)

    def test_single_spaces_part_tokens(self):
        assert rouge_l("a  b", ["a  b"]) == 1
        # Three tokens, the middle one empty.
        p, r = 2 / 3, 1
        expected = 2.44 * p * r / (r + 1.44 * p)
        assert rouge_l("a  b", ["a b"]) == pytest.approx(expected)
        assert rouge_l("a\nb", ["a b"]) == 0

    def test_nothing_in_common(self):
        assert rouge_l("a", ["b", "c"]) == 0


class TestCider:
    def test_one_image_alone_gives_0(self):
        assert cider(["a b c d"], [["a b c d"]]) == [0]

    def test_equal_captions_give_10(self):
        said = ["a b c d e", "f g h i j"]
        assert cider(said, [[text] for text in said]) == pytest.approx([10, 10])

    def test_by_hand(self):
        """Unigrams only: captions of one word have no longer n-grams."""
        found = cider(["a", "b"], [["a", "c"], ["b b"]])
        # a against a is 1, against c 0; mean over n of 4, over 2 references, times 10.
        assert found[0] == pytest.approx(1 / 4 / 2 * 10)
        # b against b b: 1 * 2 over norms 1 and 2; one bigram less.
        assert found[1] == pytest.approx(math.exp(-1 / 72) / 4 * 10)
        # b b against b: 2 is clipped to 1, so 1 * 1 over norms 2 and 1.
        found = cider(["a", "b b"], [["a", "c"], ["b"]])
        assert found[1] == pytest.approx(0.5 * math.exp(-1 / 72) / 4 * 10)

    def test_rare_words_weigh_more(self):
        references = [["a x"], ["a y"], ["a z"], ["b c"]]
        common, rare = (cider([w, "", "", ""], references)[0] for w in ("a", "x"))
        assert 0 < common < rare

    def test_words_of_all_images_weigh_nothing(self):
        assert cider(["a", "a"], [["a"], ["a"]]) == [0, 0]

    def test_difference_in_bigrams(self):
        base = [["a b"], ["c d"]]
        same, longer = (cider([s, "c d"], base)[0] for s in ("a b", "a b q r s t"))
        assert longer < same

    def test_a_word_counts_once_for_an_image(self):
        """Three references that say `a` are one image with it."""
        once = cider(["a q", "z"], [["a y"], ["b c"]])
        assert once[0] > 0
        assert cider(["a q", "z"], [["a y"] * 3, ["b c"]]) == pytest.approx(once)

    def test_words_of_no_reference_are_the_rarest(self):
        """They weigh ln 2 here, as `a` does: the cosine is 1 / sqrt(2)."""
        found = cider(["a q", "z"], [["a"], ["b"]])[0]
        assert found == pytest.approx(math.exp(-1 / 72) / 2**0.5 / 4 * 10)


class TestTask:
    def test_scores(self):
        references = [["a b c d", "x"], ["e f g h"]]
        scored = coco(references, ["a b c d", "nan"])
        assert list(scored.scores) == ["Bleu", "ROUGE_L", "CIDEr"]
        assert scored.scores["ROUGE_L"] == pytest.approx(50)
        assert scored.scores["CIDEr"] == pytest.approx(
            10 * sum(item.score for item in scored.items) / 2 * 10
        )
        assert scored.items[1].score == 0 and scored.failures == 0
        assert len(scored.intervals["Bleu"]) == 4
        low, high = scored.intervals["ROUGE_L"]
        assert low == 0 and high == 100

    @pytest.mark.parametrize("answer", ["a cat", "[]", "[1]", "'a'"])
    def test_references_must_be_lists_of_texts(self, answer):
        rows = pd.DataFrame({"index": [4, 5], "answer": ["['a']", answer]})
        with pytest.raises(ScoringError, match=r"COCO_VAL, row 2 \(index 5\): answer"):
            score("COCO_VAL", rows, ["a", "a"], "paper")

    def test_references_without_words(self):
        with pytest.raises(ScoringError, match="no reference caption has a word"):
            coco([[" "]], ["a"])


@needs_library
def test_random_captions_beside_the_library():
    for seed in range(30):
        beside_the_library(random.Random(seed))


def beside_the_library(rng):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    words = ["the", "a", "cat", "Cat", "on", ".", " ", "\n", "", "mat,"]
    words = words[: rng.randint(2, len(words))]

    def caption(least):
        return " ".join(rng.choice(words) for _ in range(rng.randint(least, 12)))

    images = range(rng.randint(1, 12))
    references = {i: [caption(1) for _ in range(rng.randint(1, 5))] for i in images}
    said = {i: [caption(0)] for i in images}
    texts, one_each = list(references.values()), [said[i][0] for i in images]
    found = coco(texts, one_each)
    expected, per_image = Bleu(4).compute_score(references, said, verbose=0)
    assert found.scores["Bleu"] == pytest.approx(np.array(expected) * 100, rel=1e-12)
    for n in range(4):
        own = [item.detail["Bleu"][n] for item in found.items]
        assert own == pytest.approx(per_image[n], rel=1e-12)
    for metric, name in ((Rouge(), "ROUGE_L"), (Cider(), "CIDEr")):
        expected, per_image = metric.compute_score(references, said)
        assert found.scores[name] == pytest.approx(100 * expected, rel=1e-12)
        own = [
            item.score if name == "CIDEr" else item.detail[name] for item in found.items
        ]
        assert own == pytest.approx(per_image, rel=1e-12, abs=1e-12)


@needs_library
@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_official_metrics_tokenise():
    said = ["A Dog, runs!\u2028on the mat", "two cats\nsit"]
    references = [["a dog runs on the mat ."], ["Two cats sit", "cats"]]
    found = score_official_captions(said, references)
    assert list(found) == ["official_Bleu", "official_ROUGE_L", "official_CIDEr"]
    assert found["official_Bleu"][0] == pytest.approx(100)
    assert found["official_ROUGE_L"] == pytest.approx(100)
    assert coco(references, said).scores["ROUGE_L"] < 50


def test_official_metrics_say_what_to_install(monkeypatch):
    module = "pycocoevalcap.tokenizer.ptbtokenizer"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ScoringError, match=r"pip install 'vtscale_jax\[coco\]'"):
        score_official_captions(["a"], [["a"]])


class _Tokenizer:
    """In place of the library's: lower-cases, and loses the captions of `lost`."""

    lost: int | None = None

    def PTBTokenizer(self):
        return self

    def tokenize(self, captions):
        assert all("\n" not in c["caption"] for own in captions.values() for c in own)
        made = {i: [c["caption"].lower() for c in own] for i, own in captions.items()}
        if self.lost is not None:
            made[self.lost].pop()
        return made


class TestOfficialWithoutTheLibrary:
    @pytest.fixture
    def tokenizer(self, monkeypatch):
        stand_in = _Tokenizer()
        monkeypatch.setattr(official_captions, "_library", lambda module: stand_in)
        return stand_in

    def test_needs_java(self, tokenizer, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda program: None)
        with pytest.raises(ScoringError, match="no program `java`"):
            score_official_captions(["a"], [["a"]])

    def test_lost_captions_are_seen(self, tokenizer, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda program: "/java")
        tokenizer.lost = 1
        with pytest.raises(ScoringError, match="captions of 2 images for 2, or fewer"):
            score_official_captions(["a\nb", "c"], [["a"], ["b"]])
