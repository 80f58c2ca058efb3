"""Pure train and evaluation steps over a `TrainState`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vtscale_jax import paths
from vtscale_jax.stages import Stage
from vtscale_jax.types import Batch
from vtscale_jax.vlm import ModelConfig


class TrainState(NamedTuple):
    """What changes in training. Frozen parameters are not in it: they are an argument
    of the step, without gradient, optimizer state or checkpoint copy.

    `step` counts batches seen (micro-batches when gradients are accumulated).
    """

    step: Int[Array, ""]
    params: dict
    opt_state: optax.OptState


Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, dict, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[dict, dict, Batch], Metrics]


def initial_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_steps(
    stage: Stage, config: ModelConfig, optimizer: optax.GradientTransformation
) -> tuple[TrainStep, EvalStep]:
    """`train_step(state, frozen, batch) -> (state, metrics)` and `eval_step(params,
    frozen, batch) -> metrics`, both pure; the caller jits them."""
    model = stage.model(config)

    def loss_fn(params: dict, frozen: dict, batch: Batch):
        objective = stage.objective(model, paths.merge(params, frozen), batch)
        return objective.loss, objective.metrics

    def train_step(state: TrainState, frozen: dict, batch: Batch):
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, frozen, batch
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    def eval_step(params: dict, frozen: dict, batch: Batch):
        loss, metrics = loss_fn(params, frozen, batch)
        return {"loss": loss, **metrics}

    return train_step, eval_step
