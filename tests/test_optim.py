"""The optimizer against optax by hand: rate, decay, clipping, rules, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vtscale_jax.optim import OptimConfig, learning_rate, make_optimizer


def tree(seed: int, scale: float = 1.0) -> dict:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(scale * rng.normal(size=shape))

    return {
        tower: {"kernel": draw(3, 4), "bias": draw(4)} for tower in ("vision", "fusion")
    }


def updates(config: OptimConfig, gradients: list[dict], params: dict) -> list[dict]:
    """The parameters after each gradient."""
    optimizer = make_optimizer(config, params)
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, change)
        seen.append(params)
    return seen


def moved(before: dict, after: dict) -> dict:
    return jax.tree.map(lambda a, b: np.abs(np.asarray(b - a)).max(), before, after)


def assert_close(one: dict, two: dict, **tolerance) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, **tolerance}),
        one,
        two,
    )


def test_the_rate_warms_up_and_follows_a_cosine():
    config = OptimConfig(100, 2e-3, warmup=0.1, final_share=0.1)
    rate = learning_rate(config)
    assert rate(0) == 0
    assert rate(5) == pytest.approx(1e-3)
    assert rate(10) == pytest.approx(2e-3)
    assert rate(55) == pytest.approx(2e-3 * (0.1 + 0.9 * 0.5), rel=1e-5)
    assert rate(100) == pytest.approx(2e-4)
    assert learning_rate(OptimConfig(100, 2e-3, warmup=0.0))(0) == pytest.approx(2e-3)


def test_one_update_is_adam_at_the_rate_of_its_step():
    config = OptimConfig(10, 1e-2, warmup=0.0, clip_norm=1e9)
    params = tree(0)
    steps = updates(config, [tree(1), tree(2)], params)
    # Adam's first update has the size of the rate in every component.
    for size in jax.tree.leaves(moved(params, steps[0])):
        assert size == pytest.approx(1e-2, rel=1e-4)
    plain = optax.adam(learning_rate(config), b1=0.9, b2=0.999)
    state, ours = plain.init(params), params
    for gradient in (tree(1), tree(2)):
        change, state = plain.update(gradient, state)
        ours = optax.apply_updates(ours, change)
    assert_close(ours, steps[1])


def test_kernels_decay_and_biases_do_not():
    config = OptimConfig(10, 1e-2, warmup=0.0, weight_decay=0.5)
    params = tree(0)
    nothing = jax.tree.map(jnp.zeros_like, params)
    (after,) = updates(config, [nothing], params)
    for tower in params:
        shrunk = params[tower]["kernel"] * (1 - 1e-2 * 0.5)
        np.testing.assert_allclose(after[tower]["kernel"], shrunk, rtol=1e-6)
        np.testing.assert_array_equal(after[tower]["bias"], params[tower]["bias"])


def test_gradients_are_clipped_by_their_global_norm():
    # Adam forgets the scale of one gradient, not the ratio of two.
    config = OptimConfig(10, 1e-2, warmup=0.0, clip_norm=0.5)
    free = OptimConfig(10, 1e-2, warmup=0.0, clip_norm=1e9)
    small, large = tree(1, 1e-3), tree(2, 50.0)
    clipped = jax.tree.map(lambda g: g * 0.5 / optax.tree.norm(large), large)
    params = tree(0)
    assert_close(
        updates(config, [small, large], params)[-1],
        updates(free, [small, clipped], params)[-1],
    )
    with pytest.raises(AssertionError):
        assert_close(
            updates(config, [small, large], params)[-1],
            updates(free, [small, large], params)[-1],
        )


def test_rate_rules_scale_the_update_of_their_paths():
    rules = ((r"vision/.*", 0.25), (r".*", 1.0))
    config = OptimConfig(10, 1e-2, warmup=0.0, rate_rules=rules)
    params = tree(0)
    sizes = moved(params, updates(config, [tree(1)], params)[0])
    assert sizes["vision"]["kernel"] == pytest.approx(0.25e-2, rel=1e-4)
    assert sizes["fusion"]["kernel"] == pytest.approx(1e-2, rel=1e-4)
    with pytest.raises(ValueError, match="fusion/bias"):
        make_optimizer(OptimConfig(10, 1e-2, rate_rules=rules[:1]), params)


def test_accumulation_is_one_update_with_the_mean_gradient():
    params = tree(0)
    twice = OptimConfig(10, 1e-2, warmup=0.0, accumulation=2, weight_decay=0.1)
    once = OptimConfig(10, 1e-2, warmup=0.0, weight_decay=0.1)
    gradients = [tree(1), tree(2, 3.0)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    first, second = updates(twice, gradients, params)
    assert_close(first, params, rtol=0)
    assert_close(second, updates(once, [mean], params)[0])
