"""Texts as vectors, whose cosine says how alike two texts are.

    mpnet          sentence-transformers/all-mpnet-base-v2, as the authors: the
                   thresholds of the specification are for this one
    hashed_words   counts of words by hash (scikit-learn): no download, sees words only
    llm:NAME       mean of a language model's last hidden states

Any object with the fields of `Encoder` will do in their place.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

MPNET = "sentence-transformers/all-mpnet-base-v2"
NAMES = ("mpnet", "hashed_words", "llm:NAME")
NUM_HASHES = 4096
LLM_TOKENS = 512  # read of each text; beyond that it is cut, and counted


class EncoderError(ValueError):
    """An encoder that cannot be had, or vectors that are none."""


@runtime_checkable
class Encoder(Protocol):
    """`name` stands in the manifest; `truncated` counts the texts that were read in
    part only, so far."""

    name: str
    truncated: int

    def encode(self, texts: list[str]) -> Float[np.ndarray, "T D"]:
        """A vector for each text, in order."""
        ...


def open_encoder(name: str, open_llm: Callable[..., Any] | None = None) -> Encoder:
    """The encoder of a name (see the module); EncoderError for one there is not.

    `open_llm` opens a language model by name, as the command of `data` is given it.
    """
    if name in ("mpnet", MPNET):
        return SentenceEncoder(MPNET)
    if name == "hashed_words":
        return HashedWords()
    if name.startswith("llm:") and name != "llm:" and open_llm is not None:
        return HiddenStates(name, *open_llm(name.removeprefix("llm:"), apart=False))
    raise EncoderError(f"--encoder is {name!r}, expected one of {', '.join(NAMES)}.")


def cosines(
    first: Float[np.ndarray, "T D"], second: Float[np.ndarray, "T D"]
) -> Float[np.ndarray, " T"]:
    """Row by row; 0 where a vector is zero (a text in which there is nothing).

    Raises EncoderError for vectors that are not finite.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise EncoderError(
            "the encoder gave vectors with NaN or infinity, expected finite ones: "
            "another dtype (--dtype float32) or another --encoder may help."
        )
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.sum(a * b, axis=1)
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


class HashedWords:
    """Counts of lower-case words, hashed into 4,096 signed places.

    Equal words in any order give cosine 1. It knows no synonyms and no word order, and
    two unlike texts have a cosine near 0 but for the words that all texts share.
    """

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        self.name = f"hashed_words-{NUM_HASHES}"
        self.truncated = 0
        # One-letter words count too: formulas are full of them.
        self._hash = HashingVectorizer(
            n_features=NUM_HASHES, token_pattern=r"(?u)\b\w+\b", dtype=np.float32
        )

    def encode(self, texts: list[str]) -> Float[np.ndarray, "T D"]:
        """A unit vector for each text; zero for one without words."""
        hashed: Any = self._hash.transform(texts)
        return hashed.toarray()


class SentenceEncoder:
    """A model of the package sentence-transformers, which is not among this package's
    own requirements. all-mpnet-base-v2 reads the first 384 word pieces of a text."""

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import (  # pyright: ignore[reportMissingImports]
                SentenceTransformer,
            )
        except ImportError as error:
            raise EncoderError(
                f"--encoder {name} needs the package sentence-transformers ({error}): "
                "pip install sentence-transformers, or take --encoder hashed_words or "
                "llm:NAME with a --min_similarity of your own (the default is for "
                "all-mpnet-base-v2)."
            ) from error
        self.name = name
        self.truncated = 0
        self._model = SentenceTransformer(name)

    def encode(self, texts: list[str]) -> Float[np.ndarray, "T D"]:
        """The model's own pooling of each text."""
        most = self._model.max_seq_length
        if most is not None:
            ids = self._model.tokenizer(texts, truncation=False, verbose=False)
            self.truncated += sum(len(row) > most for row in ids["input_ids"])
        return np.asarray(self._model.encode(texts, convert_to_numpy=True), np.float32)


class HiddenStates:
    """Mean of the final hidden states of a language model over a text's tokens.

    `model` is a language model as `open_llm` gives it (config, params, tokenizer), with
    its layers stacked; `identity` its hashes. A text of no tokens is a zero vector.
    """

    def __init__(self, name: str, model: Any, identity: Any) -> None:
        self.name = f"{name} ({identity['weights_sha256'][:12]})"
        self.truncated = 0
        self._model = model
        self._most = min(LLM_TOKENS, model.limit or LLM_TOKENS)

    def encode(self, texts: list[str]) -> Float[np.ndarray, "T D"]:
        """A vector for each text; texts of one padded length are read together."""
        from vtscale_jax.stream import padded_length

        rows = [self._ids(text) for text in texts]
        groups: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(min(padded_length(len(row)), self._most), []).append(
                place
            )
        width = self._model.config.blocks.width
        vectors = np.zeros((len(texts), width), np.float32)
        for length, members in groups.items():
            for start in range(0, len(members), 8):
                chunk = members[start : start + 8]
                vectors[chunk] = self._means([rows[i] for i in chunk], length)
        return vectors

    def _ids(self, text: str) -> list[int]:
        ids = self._model.tokenizer.encode(text, add_special_tokens=False)
        self.truncated += len(ids) > self._most
        return ids[: self._most]

    def _means(
        self, rows: Sequence[list[int]], length: int
    ) -> Float[np.ndarray, "T D"]:
        ids = np.zeros((8, length), np.int32)  # one shape, hence one program
        keep = np.zeros((8, length), bool)
        for place, row in enumerate(rows):
            ids[place, : len(row)], keep[place, : len(row)] = row, True
        means = mean_hidden(self._model.config)(self._model.params, ids, keep)
        return np.asarray(means)[: len(rows)]


@functools.cache
def mean_hidden(config: Any) -> Callable[[Any, np.ndarray, np.ndarray], Any]:
    """A program of (params, ids [B, S], keep [B, S]): means [B, D] of the final hidden
    states of an `LLM` with `config` over the kept tokens of each row."""
    import jax  # this rib is of the host: JAX comes only with a model
    import jax.numpy as jnp

    from vtscale_jax.llm import LLM

    def of_rows(llm: LLM, ids: Any, keep: Any) -> Any:
        hidden = llm(llm.embed(ids), keep).hidden.astype(jnp.float32)
        summed = jnp.sum(jnp.where(keep[..., None], hidden, 0), axis=1)
        return summed / jnp.maximum(jnp.sum(keep, axis=1), 1)[:, None]

    @jax.jit
    def run(params: Any, ids: Any, keep: Any) -> Any:
        return LLM(config).apply({"params": params}, ids, keep, method=of_rows)

    return run
