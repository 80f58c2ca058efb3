"""Pairs for the embedded language model: two pages in words, each from the beginning.

That model knows Digit Pages in a closed vocabulary and nothing else; the shipped pairs
are no text to it, and its answers have a dozen words. What it has read at length are
pages, written out where the vision tokens will stand: so branch A is one page, branch B
another, and the prefix is what stands before both. It is the text side of
`vision_branches`. Pages come as an argument: only a `__main__` joins the two folders.
"""

import itertools
from collections.abc import Callable, Iterator

from transformers import PreTrainedTokenizerBase

from vtscale_jax.divergence.pairs.schemas import BadRow, Pair, PairsError
from vtscale_jax.divergence.pairs.writers import Written

LEAST_WORDS = 128


def page_pairs(
    page: Callable[[int], str], number: int, *, least_words: int = LEAST_WORDS
) -> Iterator[Pair]:
    """`number` pairs of pages of at least `least_words` words, of those that `page(0)`,
    `page(1)`, … give: one, and the next that begins with another word.

    Other pages are passed over: D(n) is measured as far as both branches go, and what
    two branches have in common at the beginning is prefix. Raises PairsError for a
    number below 1.
    """
    if number < 1:
        raise PairsError(f"number is {number}, expected at least 1 pair")
    texts = map(page, itertools.count())
    return _paired((t for t in texts if len(t.split()) >= least_words), number)


def _paired(pages: Iterator[str], number: int) -> Iterator[Pair]:
    for line in range(1, number + 1):
        first = next(pages)
        other = next(p for p in pages if p.split()[0] != first.split()[0])
        yield Pair(line, (("user", "page"),), first, other)


class PageWriter:
    """Writes pairs of pages as ids: ⟨bos⟩, then the page (see `embedded.pretrain_llm`,
    from which the model knows them so).

    A word that the tokenizer does not know makes the pair a bad row.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer.bos_token_id, int):
            raise PairsError("the tokenizer has no ⟨bos⟩, with which a page begins")
        self._tokenizer, self._begin = tokenizer, tokenizer.bos_token_id

    def __call__(self, pair: Pair) -> Written | BadRow:
        """The ids of a pair."""
        a, b = (
            list(self._tokenizer.encode(page, add_special_tokens=False))
            for page in (pair.chosen, pair.rejected)
        )
        for name, ids in (("the first", a), ("the second", b)):
            if self._tokenizer.unk_token_id in ids:
                detail = f"{name} page has words that the vocabulary lacks"
                return BadRow(pair.line, "unknown words", detail)
        return Written([self._begin], a, b)
