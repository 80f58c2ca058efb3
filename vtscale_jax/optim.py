"""Learning-rate schedule and optimizer, from ordered path rules.

AdamW with linear warm-up and cosine decay, gradients clipped by global norm, and
gradient accumulation by `optax.MultiSteps` (the mean of the micro-batch gradients).
"""

import dataclasses

import optax

from vtscale_jax import paths

# What kind of parameter a path is; the first full match wins and a path that matches
# none is an error. Norms, biases and single vectors are not decayed.
DECAY_RULES = (
    (r"(.*/)?(scale|bias)", False),
    (r"(.*/)?(class_embed|newline|logit_scale)", False),
    (r"(.*/)?(kernel|embed|pos_embed|queries|head)", True),
)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Hyperparameters of one stage.

    `warmup` is the share of `steps` with a rising rate; `final_share` the rate at the
    end of the cosine, as a share of the peak. `steps` counts optimizer updates, each
    the mean of `accumulation` micro-batches. `rate_rules` are ordered (path regex,
    multiplier) pairs, e.g. to train the vision tower more slowly.
    """

    steps: int
    learning_rate: float
    warmup: float = 0.03
    final_share: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float = 1.0
    accumulation: int = 1
    rate_rules: tuple[tuple[str, float], ...] = ((r".*", 1.0),)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulation < 1:
            raise ValueError(
                f"optim.steps {self.steps} and optim.accumulation "
                f"{self.accumulation} must both be at least 1"
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"optim.warmup is {self.warmup}, expected a share in [0, 1)"
            )


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Linear warm-up over `warmup·steps` updates, then a cosine to `final_share`."""
    warmup_steps = round(config.warmup * config.steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(config.steps, warmup_steps + 1),
        end_value=config.final_share * config.learning_rate,
    )


def make_optimizer(config: OptimConfig, params: dict) -> optax.GradientTransformation:
    """The optimizer for these trainable parameters (only their paths are looked at).

    ValueError if a parameter is covered by no rule.
    """
    flat = paths.flatten(params)
    decay = paths.unflatten({p: paths.match(p, DECAY_RULES) for p in flat})
    rates = {p: paths.match(p, config.rate_rules) for p in flat}
    labels = paths.unflatten({p: f"rate×{rate:g}" for p, rate in rates.items()})
    scales = {f"rate×{rate:g}": optax.scale(rate) for rate in set(rates.values())}
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=decay,
        ),
        optax.multi_transform(scales, labels),
    )
    if config.accumulation == 1:
        return optimizer
    return optax.MultiSteps(optimizer, config.accumulation).gradient_transformation()
