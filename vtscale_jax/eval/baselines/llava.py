"""LLaVA-1.5: a CLIP tower, a two-layer projector, and a Llama that reads patches.

    pixels → tower → (reducer) → projector → in place of the placeholders → LLM

The patches of a 336-pixel image are 576 vectors, or as many as a reducer leaves. Spec:
baselines, section A; the parity is with transformers' LlavaForConditionalGeneration.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from vtscale_jax.eval.baselines.reducers import Plan, Reducer, ReducerError, Seen
from vtscale_jax.eval.baselines.tower import FeatureTower, TowerView, state_numbers
from vtscale_jax.layers import ACTIVATIONS, Linear
from vtscale_jax.llm import LLM, LLMConfig, splice
from vtscale_jax.vision import VisionConfig


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Everything about the model.

    `vision` is the whole CLIP tower, of which the blocks up to the last of
    `feature_layers` are computed (−2: the output of the last block but one); of several
    layers the states stand side by side. `keep_class` is the "full" selection of
    features. The projector's activation is `projector_activation` ("gelu" is the exact
    one), with biases where `projector_bias`.
    """

    vision: VisionConfig
    llm: LLMConfig
    feature_layers: tuple[int, ...] = (-2,)
    keep_class: bool = False
    projector_activation: str = "gelu"
    projector_bias: bool = True

    def __post_init__(self) -> None:
        state_numbers(self.feature_layers, self.vision.blocks.num_layers)
        if self.projector_activation not in ACTIVATIONS:
            raise ValueError(
                f"projector_activation: got {self.projector_activation!r}, expected "
                f"one of {sorted(ACTIVATIONS)}"
            )

    @property
    def states(self) -> tuple[int, ...]:
        """`feature_layers` as numbers from 0 on."""
        return state_numbers(self.feature_layers, self.vision.blocks.num_layers)

    @property
    def num_patches(self) -> int:
        """Patches of an image of the tower's own size."""
        return self.vision.grid**2

    @property
    def num_tokens(self) -> int:
        """Vectors of an image that the LLM reads without a reducer."""
        return self.num_patches + self.keep_class


class Projector(nn.Module):
    """W₂ act(W₁ x + b₁) + b₂, from the tower's width to the LLM's."""

    width: int
    activation: str
    bias: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        def linear(name: str) -> Linear:
            return Linear(self.width, self.dtype, self.bias, name=name)

        # Two-dimensional, as in layers.SelfAttention.
        y = linear("linear_1")(x.reshape(-1, x.shape[-1]))
        y = linear("linear_2")(ACTIVATIONS[self.activation](y))
        return y.reshape(*x.shape[:-1], self.width)


class Llava(nn.Module):
    """Called on prompts with images it returns logits where they are asked for.

    `see`, `project` and the LLM's own methods are its parts; generation has the LLM
    alone read what `look` makes of the images.
    """

    config: LlavaConfig

    def setup(self) -> None:
        c = self.config
        self.vision = FeatureTower(c.vision, c.states, c.keep_class)
        self.projector = Projector(
            c.llm.blocks.width,
            c.projector_activation,
            c.projector_bias,
            c.llm.blocks.dtype,
        )
        self.llm = LLM(c.llm)

    def __call__(
        self,
        pixels: Float[Array, "B height width 3"],
        ids: Int[Array, "B S"],
        keep: Bool[Array, "B S"],
        slots: Int[Array, "B K"],
        positions: Int[Array, "B A"],
    ) -> Float[Array, "B A W"]:
        """Logits at `positions` of right-padded rows. Vector k of an image stands at
        `slots[b, k]`; slots beyond the row are dropped (a row without an image)."""
        hidden = self.hidden(self.project(self.see(pixels).features), ids, keep, slots)
        hidden = jnp.take_along_axis(hidden, positions[:, :, None], axis=1)
        return self.llm.logits(hidden)

    def see(self, pixels: Float[Array, "B height width 3"]) -> TowerView:
        """What the tower makes of normalised pixels."""
        return self.vision(pixels)

    def project(self, features: Float[Array, "B T E"]) -> Float[Array, "B T D"]:
        """Features as vectors for the LLM."""
        return self.projector(features)

    def look(
        self,
        pixels: Float[Array, "B height width 3"],
        keys: UInt32[Array, "B 2"],
        *,
        reducer: Reducer,
        plan: Plan,
    ) -> Float[Array, "B n D"]:
        """The n vectors of each image that the LLM is to read. `keys` are
        `reducers.image_key` of the images. Raises ReducerError for a model whose
        features are not those of one block without the class row."""
        view = self.see(pixels)
        if reducer.name == "none":
            return self.project(view.features)
        if len(self.config.feature_layers) > 1 or self.config.keep_class:
            raise ReducerError(
                f"reducer {reducer.name}: the model has feature_layers "
                f"{self.config.feature_layers} and keep_class "
                f"{self.config.keep_class}, expected one layer without the class row: "
                "what a reducer reads is of that one block"
            )

        def reduce(*seen: Array) -> Array:
            return reducer.apply(Seen(*seen), plan)

        return self.project(jax.vmap(reduce)(*view, keys))

    def hidden(
        self,
        vectors: Float[Array, "B K D"],
        ids: Int[Array, "B S"],
        keep: Bool[Array, "B S"],
        slots: Int[Array, "B K"],
    ) -> Float[Array, "B S D"]:
        """States of the LLM after its final norm."""
        return self.llm(splice(self.llm.embed(ids), vectors, slots), keep).hidden

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        """Next-token logits of such states."""
        return self.llm.logits(hidden)
