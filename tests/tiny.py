"""A model and batches small enough for property tests; sizes all different."""

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax.collate import BatchSpec, Encoded
from vtscale_jax.collate import collate as collate_on_host
from vtscale_jax.fusion import FusionConfig
from vtscale_jax.layers import BlockConfig
from vtscale_jax.llm import LLMConfig
from vtscale_jax.text_tower import TextConfig
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Batch, Kind, TokenSequence
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig

VOCAB = 23
SPEC = BatchSpec(
    batch_size=4,
    tokens_per_crop=5,
    crops=(12,),
    fusion_length=(48,),
    query_slots=(24,),
    llm_length=(64,),
    loss_positions=(16,),
    answers=(8,),
    answer_length=(10,),
)


def model_config(num_query_rows: int = 7, **more) -> ModelConfig:
    """Vision width 64, four tokens and a newline per crop; LLM with grouped queries."""
    clip = {"norm_eps": 1e-5, "activation": "quick_gelu", **more}
    return ModelConfig(
        VisionConfig(16, 4, BlockConfig(64, 96, 4, 2, **clip)),
        FusionConfig(
            VOCAB, num_query_rows, BlockConfig(64, 80, 1, 2, norm_eps=1e-6, **more)
        ),
        LLMConfig(VOCAB, BlockConfig(48, 72, 4, 2, num_kv_heads=2, **more)),
        TextConfig(VOCAB, 16, 24, BlockConfig(32, 40, 2, 2, **clip)),
    )


def words(rng: np.random.Generator, number: int) -> list[int]:
    return rng.integers(3, VOCAB, number).tolist()


def sequence(parts: list[tuple[list[int], Kind]]) -> TokenSequence:
    ids = [i for part, _ in parts for i in part]
    kinds = [int(kind) for part, kind in parts for _ in part]
    return TokenSequence(np.array(ids, np.int32), np.array(kinds, np.int32))


def sample(
    rng: np.random.Generator,
    layout: QueryLayout,
    *,
    crops: int = 2,
    turns: int = 2,
    align: bool = False,
) -> Encoded:
    """A made-up sample with random words and pixels."""
    fusion, llm, answers = [], [([1], Kind.BOS)], []
    for turn in range(turns):
        question, answer = words(rng, 3 + turn), words(rng, 2 + turn)
        slots = layout.placeholder_ids(turn, 2)
        fusion += [(question, Kind.QUE), (slots, Kind.QED), ([2], Kind.EOS)]
        llm += [([2] * layout.count(turn), Kind.QED), (question, Kind.QUE)]
        llm += [(answer, Kind.ANS), ([2], Kind.EOS)]
        answers.append(sequence([(answer, Kind.ANS), ([2], Kind.EOS)]))
    pixels = rng.normal(size=(crops, 16, 16, 3)).astype(np.float32)
    return Encoded(
        f"sample {rng.integers(10**6)}",
        pixels,
        sequence(fusion),
        llm=None if align else sequence(llm),
        answers=tuple(answers) if align else None,
    )


def collate(samples: list[Encoded], spec: BatchSpec = SPEC) -> Batch:
    """The batch as device arrays, which the model's signatures ask for."""
    return jax.tree.map(jnp.asarray, collate_on_host(samples, spec))


def batch(
    layout: QueryLayout, *, spec: BatchSpec = SPEC, seed: int = 0, **more
) -> Batch:
    """Samples with 1, 2, 3, 2 crops."""
    rng = np.random.default_rng(seed)
    samples = [sample(rng, layout, crops=c, **more) for c in (1, 2, 3, 2)]
    return collate(samples, spec)
