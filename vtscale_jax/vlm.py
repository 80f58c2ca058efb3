"""The two whole models: `VLM` (finetune and adapt) and `AlignModel` (align).

Both share vision → pack → fusion; `VLM` then projects the query outputs, splices them
into the LLM's embeddings by integer position, and takes logits at loss positions only.

Two notes of the specification have their answer here. Quirk 12: outputs are taken at
positions that the host names by kind, never by looking for an ⟨eos⟩ id, as in the
reference (its config's `eos_token_id` is unused). Quirk 9: what is dead or broken there
(image embeddings of the HD tower, `num_patches` as a method, `return_dict=False`, a
fusion name that is not registered, `clip_from_pretrained`) has no counterpart, and
text-only records, at which its HD processor raises, are ordinary ones.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vtscale_jax.fusion import FusionConfig, FusionDecoder
from vtscale_jax.layers import Caches, lay, places
from vtscale_jax.llm import LLM, LLMConfig, splice
from vtscale_jax.text_tower import TextConfig, TextTower
from vtscale_jax.types import Batch, FusionInput, Kind, LLMInput
from vtscale_jax.vision import VisionConfig, VisionTower, pack_crops


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything about the model. `text` matters to align only."""

    vision: VisionConfig
    fusion: FusionConfig
    llm: LLMConfig
    text: TextConfig

    def __post_init__(self):
        vision, fusion = self.vision.blocks, self.fusion.blocks
        if vision.width != fusion.width:
            raise ValueError(
                f"fusion width {fusion.width} must equal vision width {vision.width}: "
                "vision tokens enter the fusion decoder without a projection"
            )


def _look(
    vision: VisionTower,
    crops: Float[Array, "U height width 3"] | UInt8[Array, "U height width 3"],
    crop_index: Int[Array, " C"] | None,
) -> Float[Array, "C T D"]:
    """Vision tokens of the crops that samples have (see `types.FusionInput`)."""
    tokens = vision(crops).tokens
    return tokens if crop_index is None else tokens[crop_index]


def fuse(
    tokens: Float[Array, "C T D"], fusion: FusionDecoder, inputs: FusionInput
) -> Float[Array, "B F D"]:
    """Vision tokens and questions → fusion states after the final norm, whole rows.

    A sample without crops has a row of kind PAD: fully masked, finite, read by nothing.
    """
    rows = pack_crops(
        tokens,
        fusion.embed(inputs.ids),
        inputs.crop_row,
        inputs.crop_rank,
    )
    keep = (inputs.kinds & Kind.PAD) == 0
    return fusion(lay(rows, "batch", None, None), keep)[0]


def take_slots(
    states: Float[Array, "B F D"], slots: Int[Array, "B K"]
) -> Float[Array, "B K D"]:
    """The states at query slots and ⟨eos⟩; zeros where `slots` only fill the bucket."""
    picked = jnp.take_along_axis(
        states, jnp.minimum(slots, states.shape[1] - 1)[:, :, None], axis=1
    )
    return jnp.where((slots < states.shape[1])[:, :, None], picked, 0)


class VLM(nn.Module):
    """vision → fusion → projector → splice → llm.

    Called on a batch it returns logits at its loss positions. Generation has the LLM
    alone read `query_vectors` (see `generate`).
    """

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.vision = VisionTower(c.vision)
        self.fusion = FusionDecoder(c.fusion)
        self.projector = nn.Dense(
            c.llm.blocks.width,
            use_bias=False,
            dtype=c.fusion.blocks.dtype,
            kernel_init=nn.initializers.normal(0.001),
        )
        self.llm = LLM(c.llm)

    def __call__(self, batch: Batch) -> Float[Array, "J A W"]:
        assert batch.llm is not None, "a batch of stage align has no LLM part"
        x = self.embed_prompt(batch.fusion, batch.llm)
        keep = (batch.llm.kinds & Kind.PAD) == 0
        packing = batch.llm.packing
        if packing is None:
            hidden = self.llm(x, keep).hidden
        else:
            hidden = self.llm(
                x, keep, packing.positions, segments=packing.segments
            ).hidden
        hidden = jnp.take_along_axis(
            hidden, batch.llm.loss_positions[:, :, None], axis=1
        )
        return lay(self.llm.logits(hidden), "batch", None, "vocab")

    def embed_prompt(
        self, fusion_input: FusionInput, llm_input: LLMInput
    ) -> Float[Array, "J S E"]:
        """LLM input embeddings with fused vision tokens in the places of the blocks."""
        vectors = self.query_vectors(fusion_input)
        packing = llm_input.packing
        x = splice(
            self.llm.embed(llm_input.ids),
            vectors,
            llm_input.slots,
            None if packing is None else packing.sample_row,
        )
        return lay(x, "batch", None, None)

    def query_vectors(
        self, inputs: FusionInput, tokens: Float[Array, "C T D"] | None = None
    ) -> Float[Array, "B K E"]:
        """What the LLM sees of the images: fusion outputs at the query slots,
        projected. With `tokens`, those of `look`, crops are not read again."""
        if tokens is None:
            tokens = self.look(inputs.crops, inputs.crop_index)
        states = fuse(tokens, self.fusion, inputs)
        self.sow("intermediates", "fused", states)
        vectors = self.projector(take_slots(states, inputs.slots))
        self.sow("intermediates", "projected", vectors)
        return vectors

    def look(
        self,
        crops: Float[Array, "U height width 3"] | UInt8[Array, "U height width 3"],
        crop_index: Int[Array, " C"] | None = None,
    ) -> Float[Array, "C T D"]:
        """Vision tokens of crops: the first half of `query_vectors`."""
        return _look(self.vision, crops, crop_index)

    def ask(
        self,
        inputs: FusionInput,
        tokens: Float[Array, "C T D"] | None,
        start: Int[Array, " B"],
        caches: Caches,
    ) -> tuple[Float[Array, "B K E"], Caches]:
        """The second half: query vectors of rows that go on at places `start`, and the
        fusion caches after them.

        A first question brings the vision tokens (`inputs.crops` is not read again); a
        follow-up has None and its own tokens only, slots counted in `inputs`.
        """
        rows = self.fusion.embed(inputs.ids)
        if tokens is not None:
            rows = pack_crops(tokens, rows, inputs.crop_row, inputs.crop_rank)
        keep = (inputs.kinds & Kind.PAD) == 0
        positions = start[:, None] + jnp.arange(inputs.ids.shape[1])
        positions = jnp.where(keep, positions, places(caches).size)
        states, new = self.fusion(rows, keep, positions, caches)
        assert new is not None
        return self.projector(take_slots(states, inputs.slots)), new

    def hidden(
        self, fusion_input: FusionInput, llm_input: LLMInput
    ) -> Float[Array, "B S D"]:
        """LLM states after the final norm at every position."""
        x = self.embed_prompt(fusion_input, llm_input)
        return self.llm(x, (llm_input.kinds & Kind.PAD) == 0).hidden

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        """Next-token logits of LLM states."""
        return self.llm.logits(hidden)


@functools.partial(jax.jit, static_argnames="config")
def look(
    params: Mapping[str, Any],
    crops: Float[Array, "U height width 3"] | UInt8[Array, "U height width 3"],
    crop_index: Int[Array, " C"] | None = None,
    *,
    config: ModelConfig,
) -> Any:
    """Vision tokens `[C, T, D]` of crops: `VLM.look` as a program."""
    return VLM(config).apply({"params": params}, crops, crop_index, method=VLM.look)


class AlignOutput(NamedTuple):
    """What the align loss compares (see `losses.align_loss`)."""

    questions: Float[Array, "R E"]
    answers: Float[Array, "R E"]
    logit_scale: Float[Array, ""]
    slots: Float[Array, "Q D"]
    slot_mask: Bool[Array, " Q"]


class AlignModel(nn.Module):
    """Stage 1: fused question vectors and the text tower's answer vectors."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        self.vision = VisionTower(c.vision)
        self.fusion = FusionDecoder(c.fusion)
        self.text = TextTower(c.text)
        self.align = AlignHead(c.text.projection_width, c.fusion.blocks.dtype)

    def __call__(self, batch: Batch) -> AlignOutput:
        answers = batch.answers
        inputs = batch.fusion
        tokens = _look(self.vision, inputs.crops, inputs.crop_index)
        states = fuse(tokens, self.fusion, inputs)
        slots = take_slots(states, inputs.slots)
        self.sow("intermediates", "fused", states)
        keep = (answers.kinds & Kind.PAD) == 0
        text = self.text(answers.ids, keep, answers.eos)
        picked = slots[answers.question_row, answers.question_slot]
        questions, logit_scale = self.align(picked)
        slot_mask = inputs.slots < states.shape[1]
        flat = slots.reshape(-1, slots.shape[-1])
        return AlignOutput(questions, text, logit_scale, flat, slot_mask.reshape(-1))


class AlignHead(nn.Module):
    """Projection of fused ⟨eos⟩ states and the learnt temperature (2.6592 at start,
    not clamped)."""

    width: int
    dtype: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "R D"]
    ) -> tuple[Float[Array, "R E"], Float[Array, ""]]:
        scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())
        # PyTorch's default for a Linear layer: uniform with std 1/√(3·fan_in).
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        projected = nn.Dense(
            self.width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=init,
            name="projection",
        )(x)
        return projected, jax.lax.convert_element_type(scale, jnp.float32)
