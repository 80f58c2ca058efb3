"""The steps of a stage as programs for a mesh: shapes, shardings, compilation.

    Program.of(stage, model, optim, mesh, …)   nothing is allocated
        .start(trainable)          the first train state, on the mesh
        .train_step, .eval_step    jitted; or compiled for given batch shapes ahead

`train` runs them; `python -m vtscale_jax.parallel plan` compiles the same ones for
machines that are not there.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from vtscale_jax import paths
from vtscale_jax.llm import held_in
from vtscale_jax.optim import OptimConfig, make_optimizer
from vtscale_jax.parallel import rules
from vtscale_jax.parallel.mesh import place, replicated, split
from vtscale_jax.stages import Stage, parameter_shapes
from vtscale_jax.step import TrainState, initial_state, make_steps
from vtscale_jax.types import Batch
from vtscale_jax.vlm import ModelConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """One stage's steps on one mesh.

    `state` and `frozen` are shapes and dtypes with their shardings: what each device
    holds can be told before anything is allocated.
    """

    stage: Stage
    model: ModelConfig
    mesh: Mesh
    optimizer: optax.GradientTransformation
    state: TrainState
    frozen: dict

    @classmethod
    def of(
        cls,
        stage: Stage,
        model: ModelConfig,
        optim: OptimConfig,
        mesh: Mesh,
        *,
        frozen_dtype: str,
        frozen_layout: str,
    ) -> "Program":
        """The program of a stage: trainable parameters in float32, frozen ones in
        `frozen_dtype`, laid out as `config.mesh.frozen` says.

        ValueError when a parameter has no rule, or the mesh does not fit the model.
        """
        rules.check_model(mesh, model, align=stage.name == "align")
        shapes = parameter_shapes(stage.model, model)
        if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
            model = _without_loops(model)
        trainable, frozen = paths.partition(shapes, stage.trains)
        optimizer = make_optimizer(optim, trainable)
        state = jax.eval_shape(
            functools.partial(initial_state, optimizer=optimizer), trainable
        )
        lie = rules.parameter_shardings(trainable, mesh)
        frozen = paths.unflatten(
            {
                path: jax.ShapeDtypeStruct(
                    leaf.shape, jnp.dtype(held_in(path, frozen_dtype))
                )
                for path, leaf in paths.flatten(frozen).items()
            }
        )
        kept = rules.frozen_shardings(frozen, mesh, frozen_layout)
        return cls(
            stage,
            model,
            mesh,
            optimizer,
            _shaped(state, rules.state_shardings(state, lie, mesh)),
            _shaped(frozen, kept),
        )

    def start(self, trainable: dict) -> TrainState:
        """The state before the first step, from parameters on the host."""
        params = place(trainable, shardings(self.state.params))
        make = functools.partial(initial_state, optimizer=self.optimizer)
        return jax.jit(make, out_shardings=shardings(self.state))(params)

    @functools.cached_property
    def train_step(self) -> Any:
        """`step.TrainStep`, jitted; the state given is used up."""
        return jax.jit(
            self._traced(0),
            donate_argnums=0,
            out_shardings=(shardings(self.state), replicated(self.mesh)),
        )

    @functools.cached_property
    def eval_step(self) -> Any:
        """`step.EvalStep`, jitted."""
        return jax.jit(self._traced(1), out_shardings=replicated(self.mesh))

    def lower(self, batch: Batch) -> Lowered:
        """The train step traced for batches of these shapes (arrays, or shapes)."""

        def shape(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=split(self.mesh)
            )

        return self.train_step.lower(
            self.state, self.frozen, jax.tree.map(shape, batch)
        )

    def compile(self, batch: Batch, **options: Any) -> Compiled:
        """The train step compiled for batches of these shapes; `options` go to XLA."""
        return self.lower(batch).compile(compiler_options=options or None)

    def _traced(self, which: int) -> Any:
        step: Any = make_steps(self.stage, self.model, self.optimizer)[which]

        @functools.wraps(step)
        def on_mesh(*args: Any) -> Any:
            with rules.on_mesh(self.mesh):
                return step(*args)

        return on_mesh


def _without_loops(model: ModelConfig) -> ModelConfig:
    """The model with all blocks laid out one after another.

    XLA's CPU runtime runs at once what does not depend on each other. It keeps the
    collectives of a program in one order, but not those inside a loop with those beside
    it: devices that came to them in different orders wait for each other forever.
    """

    def unrolled(part: Any) -> Any:
        blocks = dataclasses.replace(part.blocks, unroll=part.blocks.num_layers)
        return dataclasses.replace(part, blocks=blocks)

    return ModelConfig(
        unrolled(model.vision),
        unrolled(model.fusion),
        unrolled(model.llm),
        unrolled(model.text),
    )


def shardings(tree: Any) -> Any:
    """The shardings of a tree of shapes or arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _shaped(tree: Any, lie: Any) -> Any:
    return jax.tree.map(
        lambda leaf, one: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one),
        tree,
        lie,
    )
