"""What one train step costs and holds, by arithmetic: the counts of `cost` in the form
that plans want them."""

import functools
from typing import Any

from vtscale_jax.cost import flops, traffic
from vtscale_jax.parallel.plans.plan import Arithmetic, Work
from vtscale_jax.stages import Stage
from vtscale_jax.types import Batch
from vtscale_jax.vlm import ModelConfig


def arithmetic(
    stage: Stage,
    model: ModelConfig,
    batch: Batch,
    frozen_bytes: int,
    accumulation: int,
) -> Arithmetic:
    """The step of `stage` over batches of these shapes; `frozen_bytes` are those of one
    frozen number that is no int8."""
    parameters = _parameters(stage, model)
    trainable = sum(part.count for part in parameters if part.trains)
    frozen = sum(
        part.int8 + frozen_bytes * (part.count - part.int8)
        for part in parameters
        if not part.trains
    )
    sizes = flops.batch_sizes(batch)
    counted = flops.step_flops(
        stage, model, sizes, trainable=trainable, accumulation=accumulation
    )
    moved = traffic.step_traffic(
        parameters, model, sizes, frozen_bytes=frozen_bytes, accumulation=accumulation
    )
    work = Work(
        flops=counted.total,
        useful=counted.useful,
        weights=moved.weights,
        residuals=moved.residuals,
        updates=moved.gradients + moved.optimizer,
    )
    return Arithmetic(
        work,
        trainable=traffic.FLOAT32 * trainable,
        frozen=frozen,
        hidden=moved.hidden,
        block=moved.largest_block,
    )


@functools.cache
def _parameters(stage: Stage, model: ModelConfig) -> Any:
    """A search asks for the same model again and again."""
    return traffic.count_parameters(stage, model)
