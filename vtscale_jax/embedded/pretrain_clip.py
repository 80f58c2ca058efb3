"""Pre-trains the tiny CLIP: views of Digit Pages against captions of what they show.

Every view of a page is one image: the global view with the page's description, each
local view with the digit in it or "none". Different views often have the same caption,
so all pairs with equal captions are positives (the target is uniform over them); plain
CLIP would push a seven away from every other seven's caption.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig
from vtscale_jax.embedded.questions import cell_word, description
from vtscale_jax.embedded.vocabulary import build_tokenizer
from vtscale_jax.losses import normalize
from vtscale_jax.text_tower import TextConfig, TextTower
from vtscale_jax.views import make_views
from vtscale_jax.vision import VisionConfig, VisionTower

PAGES_PER_BATCH = 32


class CaptionBatch(NamedTuple):
    """Views with their captions; `caption[c]` numbers equal captions alike, and
    `ids[i]` (right-padded, ⟨eos⟩ at `eos[i]`) is the caption with number i."""

    crops: Float[Any, "C height width 3"]
    caption: Int[Any, " C"]
    ids: Int[Any, "R L"]
    eos: Int[Any, " R"]


class TinyCLIP(nn.Module):
    """Vision tower and text tower with their projections into one space."""

    vision_config: VisionConfig
    text_config: TextConfig

    def setup(self):
        self.vision = VisionTower(self.vision_config)
        self.text = TextTower(self.text_config)
        self.projection = nn.Dense(self.text_config.projection_width, use_bias=False)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(2.6592), ()
        )

    def __call__(self, batch: CaptionBatch) -> Float[Array, "C R"]:
        """Scaled cosine of every view with every caption.

        A view is its class token plus the mean of its merged tokens, because the
        fusion decoder will read the latter and never the former.
        """
        vision = self.vision(batch.crops)
        pooled = vision.class_token + jnp.mean(vision.tokens, axis=1)
        keep = jnp.arange(batch.ids.shape[1]) <= batch.eos[:, None]
        views = normalize(self.projection(pooled))
        captions = normalize(self.text(batch.ids, keep, batch.eos))
        return jnp.exp(self.logit_scale) * views @ captions.T


def caption_loss(
    logits: Float[Array, "C R"], caption: Int[Array, " C"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Contrastive loss with equal captions as joint positives, and top-1 accuracy.

    Views choose among the distinct captions; captions choose among all views, with the
    target uniform over the views that they describe. Caption rows that describe no view
    of the batch (bucket fillers) are left out.
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, 1), caption[:, None], 1)
    positive = caption[:, None] == jnp.arange(logits.shape[1])
    counts = jnp.sum(positive, axis=0)
    by_caption = jnp.sum(jax.nn.log_softmax(logits, 0), axis=0, where=positive)
    by_caption = jnp.sum(by_caption / jnp.maximum(counts, 1)) / jnp.sum(counts > 0)
    accuracy = jnp.mean(jnp.argmax(logits, axis=1) == caption)
    return -(jnp.mean(chosen) + by_caption) / 2, accuracy


def batches(
    seed: int, split: str, vision: VisionConfig, max_local_views: int, max_length: int
) -> Iterator[CaptionBatch]:
    """Endless batches of PAGES_PER_BATCH pages, every view with its caption.

    Local views must be the cells of the page: a 3×3 grid cut into 9 views.
    """
    config = PageConfig(page_size=vision.image_size * 3)
    source = DigitPages(split, num_pages=2**31, seed=seed, config=config)
    tokenizer = build_tokenizer()
    num_captions = 11 + PAGES_PER_BATCH  # ten digits, "none", one description a page
    for start in itertools.count(0, PAGES_PER_BATCH):
        crops, texts = [], []
        for page in map(source.page, range(start, start + PAGES_PER_BATCH)):
            crops.append(
                make_views(
                    page.image,
                    view_size=vision.image_size,
                    max_local_views=max_local_views,
                )
            )
            texts += [description(page.cells), *map(cell_word, page.cells)]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        ids = np.full((num_captions, max_length), tokenizer.eos_token_id, np.int32)
        eos = np.zeros(num_captions, np.int32)
        for text, number in numbers.items():
            words = tokenizer.encode(text, add_special_tokens=False)
            ids[number, : len(words)] = words
            eos[number] = len(words)
        caption = np.array([numbers[text] for text in texts], np.int32)
        yield CaptionBatch(np.concatenate(crops), caption, ids, eos)
