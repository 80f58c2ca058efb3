"""Trains the tiny LLaVA: CLIP tower and projector, before the frozen tiny Llama.

The tower reads the whole page of 96 pixels as 12 × 12 patches of 8, so the LLM sees 144
vectors. It starts from the shipped CLIP (`page_tower`). As in LLaVA, features are taken
behind the last block but one, so the blocks up to it and the projector are what trains.

Records are those of the package's own model: pages of the train split, four questions
of different families on each, in the format "plain" with all vectors before the first.
Before that comes an alignment, as in the package's own model, in place of LLaVA's own
first stage: every patch is to be near the LLM's embedding of the word for what its cell
holds. The model itself is not of this rib: `Answering` is what is asked of it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from safetensors.numpy import load_file

from vtscale_jax import paths
from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig
from vtscale_jax.embedded.page_tower import CELLS, page_tower
from vtscale_jax.embedded.questions import FAMILIES, cell_word
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.losses import answer_loss
from vtscale_jax.tokens import QueryLayout, llm_sequence, loss_targets
from vtscale_jax.views import CLIP_MEAN, CLIP_STD
from vtscale_jax.vision import VisionConfig

PAGES_PER_BATCH, PAGES_PER_ALIGNMENT = 32, 16
QUESTIONS_PER_PAGE = 4
# Room for four questions with their answers, of which the longest have 73 tokens, and
# for the tokens of the answers; NumPy refuses a longer one.
TEXT_LENGTH = 80
ANSWER_TOKENS = 32
HELDOUT_SEED, HELDOUT_QUESTIONS = 3, 512  # as at the end of a run's training


class PageBatch(NamedTuple):
    """Pages with their questions and answers, one right-padded row each.

    Vector k of a page stands at `slots[b, k]`. `positions` are those whose next token
    is of an answer, `targets` these tokens, where `mask`.
    """

    pixels: Float[Any, "B height width 3"]
    ids: Int[Any, "B S"]
    keep: Bool[Any, "B S"]
    slots: Int[Any, "B K"]
    positions: Int[Any, "B A"]
    targets: Int[Any, "B A"]
    mask: Bool[Any, "B A"]


@runtime_checkable
class Answering(Protocol):
    """A flax module with the parameters `vision`, `projector` and `llm`.

    Called on the first five fields of a `PageBatch` it gives logits `[B, A, W]`. Its
    method `see` gives what has `features [B, P, D]` of pixels, `project` vectors for
    the LLM of these.
    """

    def init(self, key: Any, /, *batch: Any) -> Any:
        """Fresh parameters."""
        ...

    def apply(self, variables: Any, /, *given: Any, method: str | None = None) -> Any:
        """What a call, or a method, gives."""
        ...


class CellBatch(NamedTuple):
    """Pages, and the LLM's id of the word for what each cell holds."""

    pixels: Float[Any, "B height width 3"]
    words: Int[Any, "B cells"]


def pages(seed: int, page_size: int) -> DigitPages:
    """All pages of the train split, four questions on each."""
    return DigitPages(
        "train",
        num_pages=2**31,
        seed=seed,
        config=PageConfig(page_size=page_size),
        questions_per_page=QUESTIONS_PER_PAGE,
    )


def batches(
    seed: int, page_size: int, num_vectors: int, size: int
) -> Iterator[PageBatch]:
    """Endless batches of `size` pages with questions, `num_vectors` a page."""
    source = pages(seed, page_size)
    for start in itertools.count(0, size):
        yield page_batch([source[i] for i in range(start, start + size)], num_vectors)


def cell_batches(seed: int, page_size: int) -> Iterator[CellBatch]:
    """Endless batches of pages with the words of their cells."""
    source, ids = pages(seed, page_size), build_tokenizer().get_vocab()
    for start in itertools.count(0, PAGES_PER_ALIGNMENT):
        drawn = [source.page(i) for i in range(start, start + PAGES_PER_ALIGNMENT)]
        words = [[ids[cell_word(cell)] for cell in page.cells] for page in drawn]
        pixels = normalize(np.stack([page.image for page in drawn]))
        yield CellBatch(pixels, np.array(words, np.int32))


def page_batch(records: list, num_vectors: int) -> PageBatch:
    """Records of whole pages as a batch: `<s> □ … □ question answer : … </s> …`."""
    tokenizer: Any = build_tokenizer()
    rows, length = len(records), num_vectors + TEXT_LENGTH
    ids = np.full((rows, length), tokenizer.eos_token_id, np.int32)
    keep = np.zeros((rows, length), bool)
    positions = np.zeros((rows, ANSWER_TOKENS), np.int32)
    targets = np.zeros((rows, ANSWER_TOKENS), np.int32)
    mask = np.zeros((rows, ANSWER_TOKENS), bool)
    for row, record in enumerate(records):
        # Without its image a record has no blocks of slots: the vectors stand once,
        # behind <s>, and not before each question.
        text = llm_sequence(
            record._replace(image=None), tokenizer, "plain", QueryLayout(1)
        )
        found, wanted = loss_targets(text)
        number = len(text.ids) + num_vectors
        ids[row, 0] = text.ids[0]
        ids[row, 1 + num_vectors : number] = text.ids[1:]
        keep[row, :number] = True
        positions[row, : len(found)] = found + num_vectors
        targets[row, : len(found)] = wanted
        mask[row, : len(found)] = True
    slots = np.broadcast_to(1 + np.arange(num_vectors), (rows, num_vectors))
    pixels = normalize(np.stack([record.image for record in records]))
    return PageBatch(pixels, ids, keep, slots, positions, targets, mask)


def normalize(pages: np.ndarray) -> Float[np.ndarray, "B height width 3"]:
    """Pixels of 0…255 as CLIP reads them, in float32."""
    scaled = pages.astype(np.float32) / np.float32(255)
    return (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)


def starting_params(
    model: Answering,
    clip_file: Path,
    llm_file: Path,
    page: tuple[int, int],
    num_heads: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trains (`vision` and `projector`) and what is frozen (`llm`).

    The tower is made from the CLIP's (`page_tower`); the projector is fresh. `page` is
    the side of a page and its patches, `num_heads` those of the tower. Both files are
    read as they ship, in half precision, so that it is the same to begin with the
    package's files and with those of `pretrain`.
    """
    batch = next(batches(seed, *page, 1))
    made: Any = model.init(jax.random.key(seed), *map(jnp.asarray, batch[:5]))
    fresh = made["params"]
    number = len(fresh["vision"]["blocks"]["norm1"]["scale"])
    tower = page_tower(_as_shipped(clip_file)["vision"], number, num_heads)
    trains = {"vision": tower, "projector": fresh["projector"]}
    frozen = {"llm": _as_shipped(llm_file)["llm"]}
    return jax.tree.map(jnp.asarray, trains), jax.tree.map(jnp.asarray, frozen)


def shipped_hash(file: Path) -> str:
    """The hash that the weights of a file have in the package's manifest."""
    return paths.content_hash(paths.unflatten(_halves(file)))


def _as_shipped(file: Path) -> dict[str, Any]:
    """Tensors by path, through half precision, in float32."""
    wide = {name: leaf.astype(np.float32) for name, leaf in _halves(file).items()}
    return paths.unflatten(wide)


def _halves(file: Path) -> dict[str, np.ndarray]:
    return {name: leaf.astype(np.float16) for name, leaf in load_file(file).items()}


def page_vision(view: VisionConfig) -> VisionConfig:
    """The tower of whole pages: that of views, with as many patches of the same size as
    a page has, and none of the parts that LLaVA has not."""
    return dataclasses.replace(
        view,
        image_size=view.image_size * CELLS,
        local_merge=False,
        newline=False,
        keep_class=True,
    )


def cell_loss(
    model: Answering, params: Any, batch: CellBatch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of every patch choosing the word of its cell by distance, and the
    share that would choose it.

    The logit of a word is −|v − e|² / 2σ², for the patch's vector v and the LLM's
    embedding e of the word; σ² is a tenth of the mean |e|².
    """
    variables, table = {"params": params}, params["llm"]["embed"]
    features = model.apply(variables, batch.pixels, method="see").features
    vectors = model.apply(variables, features, method="project")
    squares = jnp.sum(table * table, axis=-1)
    near = 2 * jnp.einsum("BPD,WD->BPW", vectors, table) - squares
    scale = 0.5 / (0.1 * jnp.mean(squares))
    grid = math.isqrt(vectors.shape[1])
    across = np.arange(grid) * CELLS // grid
    cell = (across[:, None] * CELLS + across).ravel()
    words = batch.words[:, cell]
    losses = optax.softmax_cross_entropy_with_integer_labels(near * scale, words)
    accuracy = jnp.mean(jnp.argmax(near, axis=-1) == words)
    return jnp.mean(losses), {"accuracy": accuracy}


def page_loss(
    model: Answering, params: Any, batch: PageBatch
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of the answers, as in stage finetune, and the token accuracy."""
    logits = model.apply({"params": params}, *batch[:5])
    terms = answer_loss(logits, batch.targets, batch.mask)
    return terms.loss, {"token_accuracy": terms.correct / terms.count}


def family_accuracy(
    model: Answering,
    params: Any,
    page_size: int,
    num_patches: int,
    number: int,
) -> dict[str, float]:
    """Share of held-out answers with every token right, end included, by family.

    An answer whose every token is the most likely one after those before it is the one
    that greedy decoding gives. `number` questions of each family, one a page.
    """

    @jax.jit
    def right(params: Any, batch: PageBatch) -> Bool[Array, " B"]:
        logits = model.apply({"params": params}, *batch[:5])
        hits = jnp.argmax(logits, axis=-1) == batch.targets
        return jnp.all(hits | ~batch.mask, axis=1)

    scores = {}
    for family in FAMILIES:
        source = DigitPages(
            "heldout",
            num_pages=number,
            seed=HELDOUT_SEED,
            config=PageConfig(page_size=page_size),
            families=(family,),
            questions_per_page=1,
        )
        found: list[bool] = []
        for start in range(0, number, PAGES_PER_BATCH):
            numbers = range(start, start + PAGES_PER_BATCH)
            records = [source[min(i, number - 1)] for i in numbers]
            found += right(params, page_batch(records, num_patches)).tolist()
        scores[family] = float(np.mean(found[:number]))
    return scores
