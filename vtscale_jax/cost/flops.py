"""Floating-point operations of one train step, from sizes alone.

A multiply-add counts 2. What is counted are the matrix products and convolutions, as
the model computes them: logits are taken at loss positions only, crops that fill a
bucket go through the vision tower. Attention is counted in one of two ways:

    whole     every query with every key, S·S pairs: the usual count (`attend` leaves
              out some of those that the mask hides: up to 3/8 of a long causal row)
    causal    in decoders and the text tower only the pairs that the mask leaves,
              S·(S + 1)/2: what the model needs, and what utilisation (MFU) is told
              by (packed rows and windows need fewer, and are counted so too)

Left out are norms, softmax, activations, rotary embedding, lookups and the loss's
elementwise part: together under one per cent at the sizes of the paper (see
`tests/test_flops.py`, which compares with XLA's count). XLA's own count is no
replacement: it visits the body of a loop once, and every tower is a loop over layers.

Backward, a product with a weight costs its forward cost once for the gradient of its
input and once more for that of the weight; the frozen language model has only the
first. A product of two activations costs it twice. Under remat every block is computed
again in the backward pass, but for its last product, whose result nothing there reads;
under selective remat the scores of attention are, and their products with the values
where the gradient of the weights after them is wanted.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from vtscale_jax.layers import BlockConfig
from vtscale_jax.stages import Stage
from vtscale_jax.types import Batch
from vtscale_jax.vision import VisionConfig
from vtscale_jax.vlm import ModelConfig

Attention = Literal["whole", "causal"]

# Per trainable parameter, of `optim.make_optimizer`: the norm of the gradients and
# their clipping, both moments, their correction, decay, rate, update.
OPTIMIZER_FLOPS = 20
# And of a micro-batch that only adds its gradients to the others' mean.
ACCUMULATION_FLOPS = 3


class Sizes(NamedTuple):
    """The sizes of a batch over all devices; letters as in `types`.

    Those of the parts that a stage does not have are 0.
    """

    crops: int
    rows: int
    fusion_length: int
    query_slots: int
    llm_rows: int = 0
    llm_length: int = 0
    loss_positions: int = 0
    answers: int = 0
    answer_length: int = 0


class PartFlops(NamedTuple):
    """Operations of one part of the model in one step.

    `activations` and `weights` are the two halves of its backward pass; `recompute` is
    the forward pass that remat does again.
    """

    name: str
    forward: int
    activations: int
    weights: int
    recompute: int

    @property
    def total(self) -> int:
        """All four together."""
        return self.forward + self.activations + self.weights + self.recompute


class StepFlops(NamedTuple):
    """Operations of one step (one micro-batch, where gradients are accumulated) over
    all devices; `optimizer` is its share of an update."""

    parts: tuple[PartFlops, ...]
    optimizer: int

    @property
    def total(self) -> int:
        """Everything that is computed."""
        return sum(part.total for part in self.parts) + self.optimizer

    @property
    def useful(self) -> int:
        """The same without what remat computes twice: what "model FLOPs" utilisation
        counts."""
        return self.total - sum(part.recompute for part in self.parts)


class Product(NamedTuple):
    """One product of the forward pass.

    `weight` says whether an operand is a parameter, `input_grad` whether the gradient
    of its input is wanted, `again` under which kinds of remat it is computed again
    ("selective, trained": if its part trains).
    """

    flops: int
    weight: bool = True
    input_grad: bool = True
    again: tuple[str, ...] = ("full",)


def batch_sizes(batch: Batch) -> Sizes:
    """Sizes of a batch, of real or abstract arrays."""
    rows, fusion_length = batch.fusion.ids.shape
    query_slots = batch.fusion.slots.shape[1]
    sizes = Sizes(batch.fusion.crops.shape[0], rows, fusion_length, query_slots)
    if batch.llm is not None:
        sizes = sizes._replace(
            llm_rows=batch.llm.ids.shape[0],
            llm_length=batch.llm.ids.shape[1],
            loss_positions=batch.llm.loss_positions.shape[1],
        )
    if batch.answers is not None:
        answers, answer_length = batch.answers.ids.shape
        sizes = sizes._replace(answers=answers, answer_length=answer_length)
    return sizes


def step_flops(
    stage: Stage,
    model: ModelConfig,
    sizes: Sizes,
    *,
    trainable: int,
    accumulation: int = 1,
    attention: Attention = "whole",
) -> StepFlops:
    """Operations of a train step of `stage`; `trainable` counts its parameters that
    train.

    ValueError when `sizes` lack an axis of the stage.
    """
    aligns = stage.name == "align"
    needed = (
        ("answers", "answer_length")
        if aligns
        else ("llm_rows", "llm_length", "loss_positions")
    )
    absent = [axis for axis in needed if not getattr(sizes, axis)]
    if absent:
        raise ValueError(
            f"stage {stage.name}: the batch's sizes have no {' and no '.join(absent)}, "
            f"got {sizes}: give the sizes of a batch of this stage"
        )
    parts = [*_seeing(model, sizes, attention)]
    parts += (_aligning if aligns else _answering)(model, sizes, attention)
    optimizer = OPTIMIZER_FLOPS * trainable // accumulation
    if accumulation > 1:
        optimizer += ACCUMULATION_FLOPS * trainable
    return StepFlops(tuple(parts), optimizer)


def token_pairs(length: int, attention: Attention) -> int:
    """Pairs of a query and a key in a row of `length` tokens."""
    return length * length if attention == "whole" else length * (length + 1) // 2


def block_products(
    config: BlockConfig,
    rows: int,
    length: int,
    *,
    gated: bool,
    attention: Attention = "whole",
) -> tuple[Product, ...]:
    """The products of one block over `rows` rows of `length` tokens; `gated` is the
    decoder's three-matrix MLP."""
    c, tokens = config, rows * length
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    pairs = rows * token_pairs(length, attention)
    average = Product(2 * pairs * queries, weight=False)
    # A fused kernel makes both at once.
    second = "selective, trained" if c.attention == "xla" else "selective"
    up = Product(2 * tokens * c.width * c.mlp_width)
    return (
        Product(2 * tokens * c.width * (queries + 2 * keys)),
        average._replace(again=("full", "selective")),  # scores
        average._replace(again=("full", second)),
        Product(2 * tokens * queries * c.width),
        *((up, up) if gated else (up,)),
        up._replace(again=()),
    )


def blocks_forward(
    config: BlockConfig,
    rows: int,
    length: int,
    *,
    gated: bool,
    attention: Attention = "whole",
) -> int:
    """Operations of a whole tower's blocks in the forward pass."""
    products = block_products(config, rows, length, gated=gated, attention=attention)
    return config.num_layers * sum(product.flops for product in products)


def _part(
    name: str,
    *,
    rest: Iterable[Product] = (),
    blocks: BlockConfig | None = None,
    products: Iterable[Product] = (),
    trains: bool = True,
) -> PartFlops:
    """`products` are those of one of the `blocks`, `rest` stands outside of them."""
    once = _cost(name, rest, trains, "none")
    if blocks is None:
        return once
    layer = _cost(name, products, trains, blocks.remat if blocks.stacked else "none")
    sums = [a + blocks.num_layers * b for a, b in zip(once[1:], layer[1:], strict=True)]
    return PartFlops(name, *sums)


def _cost(
    name: str, products: Iterable[Product], trains: bool, remat: str
) -> PartFlops:
    found = tuple(products)
    kinds = {remat, f"{remat}, trained"} if trains else {remat}
    to_inputs = ((p.flops if p.weight else 2 * p.flops) for p in found if p.input_grad)
    return PartFlops(
        name,
        forward=sum(p.flops for p in found),
        activations=sum(to_inputs),
        weights=sum(p.flops for p in found if p.weight and trains),
        recompute=sum(p.flops for p in found if kinds & {*p.again}),
    )


def _seeing(
    model: ModelConfig, sizes: Sizes, attention: Attention
) -> tuple[PartFlops, ...]:
    """Vision tower, local merge and fusion decoder, which every stage trains."""
    c, b, fusion = model.vision, model.vision.blocks, model.fusion.blocks
    # Pixels want no gradient.
    embed = Product(patch_embedding(c, sizes.crops), input_grad=False)
    merge = Product(local_merge(c, sizes.crops))
    layer = block_products(b, sizes.crops, c.grid**2 + 1, gated=False)
    packed = block_products(
        *(fusion, sizes.rows, sizes.fusion_length), gated=True, attention=attention
    )
    return (
        _part("vision", rest=[embed], blocks=b, products=layer),
        _part("merge", rest=[merge]),
        _part("fusion", blocks=fusion, products=packed),
    )


def patch_embedding(vision: VisionConfig, crops: int) -> int:
    """Operations of the convolution that makes patches of pixels."""
    taps = 3 * vision.patch_size**2
    return 2 * crops * vision.grid**2 * taps * vision.blocks.width


def local_merge(vision: VisionConfig, crops: int) -> int:
    """Operations of the merge convolution; 0 without one."""
    if not vision.local_merge:
        return 0
    return 2 * crops * _taps(vision) ** 2 * vision.blocks.width**2


def _taps(vision: VisionConfig) -> int:
    """Along one side: the places that the merge convolution reads, those of the padding
    left out."""
    first = -(vision.merge_kernel // 2)
    starts = range(first, first + vision.grid, vision.merge_stride)
    return sum(
        0 <= start + tap < vision.grid
        for start in starts
        for tap in range(vision.merge_kernel)
    )


def _answering(
    model: ModelConfig, sizes: Sizes, attention: Attention
) -> tuple[PartFlops, ...]:
    """Projector, language model and its head: gradients pass through these two."""
    width, llm = model.fusion.blocks.width, model.llm.blocks
    vectors = sizes.rows * sizes.query_slots
    projector = Product(2 * vectors * width * llm.width)
    layer = block_products(
        *(llm, sizes.llm_rows, sizes.llm_length), gated=True, attention=attention
    )
    taken = sizes.llm_rows * sizes.loss_positions
    head = Product(2 * taken * llm.width * model.llm.vocab_size)
    return (
        _part("projector", rest=[projector]),
        _part("llm", blocks=llm, products=layer, trains=False),
        _part("head", rest=[head], trains=False),
    )


def _aligning(
    model: ModelConfig, sizes: Sizes, attention: Attention
) -> tuple[PartFlops, ...]:
    """Text tower, and the products of the align loss and its head."""
    text, blocks, answers = model.text, model.text.blocks, sizes.answers
    projection = Product(2 * answers * blocks.width * text.projection_width)
    layer = block_products(
        *(blocks, answers, sizes.answer_length), gated=False, attention=attention
    )
    width, slots = model.fusion.blocks.width, sizes.rows * sizes.query_slots
    head = Product(2 * answers * width * text.projection_width)
    similarity = Product(2 * answers**2 * text.projection_width, weight=False)
    gram = Product(2 * slots * width * min(slots, width), weight=False)
    return (
        _part("text", rest=[projection], blocks=blocks, products=layer),
        _part("align", rest=[head, similarity, gram]),
    )
