"""Whole steps by a fused kernel are those by `attend`; kernels run as on a CPU."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import m256
from vtscale_jax import fused_attention, paths, settings
from vtscale_jax.collate import collate as collate_on_host
from vtscale_jax.fused_attention import KernelError
from vtscale_jax.layers import empty_caches
from vtscale_jax.llm import LLM
from vtscale_jax.optim import OptimConfig
from vtscale_jax.parallel.__main__ import main as parallel
from vtscale_jax.parallel.mesh import AXES, make_mesh, place, spread
from vtscale_jax.program import Program, shardings
from vtscale_jax.stages import get_stage, init_params
from vtscale_jax.tokens import QueryLayout

LAYOUT = QueryLayout(8, 4, tiny.VOCAB)
SPEC = dataclasses.replace(tiny.SPEC, batch_size=8, crops=(24,), answers=(16,))
KERNELS = {"cudnn": {"implementation": "xla"}, "splash": {"interpret": True}}


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch):
    """The kernels as they run without their hardware, and how often they were
    traced."""
    traced = []

    def counted(by, **more):
        def attention(q, k, v, seen, *, window=None):
            traced.append((by.__name__, q.shape))
            return by(q, k, v, seen, window=window, **more)

        return attention

    for kernel, more in KERNELS.items():
        by = getattr(fused_attention, f"by_{kernel}")
        monkeypatch.setattr(fused_attention, f"by_{kernel}", counted(by, **more))
    return traced


def model_config(**more):
    """The tiny model with two heads everywhere, so that they can be shared out."""
    config = tiny.model_config(7, **more)
    blocks = dataclasses.replace(config.fusion.blocks, num_heads=2, num_kv_heads=2)
    blocks = dataclasses.replace(blocks, head_dim=32)
    fusion = dataclasses.replace(config.fusion, blocks=blocks)
    return dataclasses.replace(config, fusion=fusion)


@functools.cache
def parameters(stage: str):
    rng = np.random.default_rng(1)
    params = init_params(get_stage(stage), model_config(), 0)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.05, leaf.shape).astype("f4"),
        params,
    )


def trained(stage: str, sizes=(1, 1, 1), **more) -> tuple[np.ndarray, dict]:
    """Losses and gradient norms of two steps, and the parameters after them."""
    devices = jax.devices()[: math.prod(sizes)]
    mesh = make_mesh(dict(zip(AXES, sizes, strict=True)), devices)
    program = Program.of(
        get_stage(stage),
        model_config(**more),
        OptimConfig(steps=20, learning_rate=1e-3),
        mesh,
        frozen_dtype="float32",
        frozen_layout="replicated",
    )
    trainable, frozen = paths.partition(parameters(stage), get_stage(stage).trains)
    state = program.start(trainable)
    frozen = place(frozen, shardings(program.frozen))
    rng = np.random.default_rng(0)
    samples = [
        tiny.sample(rng, LAYOUT, crops=crops, align=stage == "align")
        for crops in (1, 2, 3, 2, 3, 1, 2, 3)
    ]
    batch = spread(collate_on_host(samples, SPEC), mesh)
    step, rows = program.compile(batch), []
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
        rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return np.array(rows), paths.flatten(state.params)


ALONE = (1, 1, 1)
RUNS = [
    ("cudnn", "finetune", ALONE, {}),
    pytest.param(
        *("splash", "finetune", ALONE, {"remat": "full"}), marks=pytest.mark.long
    ),
    ("splash", "align", ALONE, {}),
    ("splash", "finetune", (2, 2, 2), {"remat": "full"}),
    pytest.param("cudnn", "align", (2, 1, 2), {}, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("kernel", "stage", "sizes", "more"), RUNS)
def test_a_step_is_the_same(kernel, stage, sizes, more, on_this_device):
    expected, after = trained(stage)
    assert not on_this_device
    rows, params = trained(stage, sizes, attention=kernel, **more)
    np.testing.assert_allclose(rows, expected, rtol=3e-5)
    for path, leaf in params.items():
        if path.endswith("/key/bias"):
            continue  # softmax cancels it: Adam makes steps of rounding errors
        # A step is 1e-3 wherever a gradient is not zero.
        np.testing.assert_allclose(leaf, after[path], atol=5e-5, err_msg=path)
    # Of rows and heads of one device; 17 is vision, 48 fusion, 64 LLM, 10 text.
    data, fsdp, tensor = sizes
    lengths = {17, 48, 64} if stage == "finetune" else {17, 48, 10}
    # Shapes of parameters are found with a single row.
    traced = [(name, shape) for name, shape in on_this_device if shape[0] > 1]
    assert {shape[1] for _, shape in traced} == lengths
    for name, (rows_here, length, heads, _) in traced:
        assert name == f"by_{kernel}"
        assert rows_here == {17: 24, 10: 16}.get(length, 8) // (data * fsdp)
        assert heads == {17: 4, 64: 4}.get(length, 2) // tensor


@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_rows(kernel, on_this_device):
    config = model_config(attention=kernel).llm
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(2, 9, 48)), jnp.float32)
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2, 2, 2]])
    places = [[0, 1, 2, 3, 0, 1, 2, 0, 0], [0, 1, 2, 3, 4, 5, 0, 1, 2]]
    positions, keep = jnp.array(places), segments > 0
    params = parameters("finetune")["llm"]

    def hidden(config, segments):
        out = LLM(config).apply(
            {"params": params}, x, keep, positions, segments=segments
        )
        return np.asarray(out.hidden)[np.asarray(keep)]

    plain = dataclasses.replace(
        config, blocks=dataclasses.replace(config.blocks, attention="xla")
    )
    expected = hidden(plain, segments)
    np.testing.assert_allclose(hidden(config, segments), expected, atol=2e-5)
    # cuDNN has no segments: `attend` computes these rows.
    assert bool(on_this_device) == (kernel == "splash")
    assert np.abs(hidden(config, None) - expected).max() > 0.1


def test_caches_are_read_without_a_kernel(on_this_device):
    config = model_config(attention="splash").llm
    params = jax.tree.map(jnp.asarray, parameters("finetune")["llm"])
    ids = jnp.array([[5, 6, 7, 8], [9, 10, 11, 0]])
    caches = empty_caches(config.blocks, 2, 6)
    logits, _ = LLM(config).apply(
        *({"params": params}, ids, ids > 0, jnp.zeros(2, int), caches),
        method=LLM.read,
    )
    assert np.isfinite(logits).all() and not on_this_device


def test_a_config_names_the_kernel():
    config = m256.get_config("paper,stage=finetune")
    for backend in ("cpu", "gpu", "tpu"):
        assert settings.resolve_attention(config, backend, "bfloat16") == "xla"
    config.model.attention = "splash"
    assert settings.resolve_attention(config, "tpu", "bfloat16") == "splash"
    with pytest.raises(KernelError, match="runs on tpu only, and this is cpu"):
        settings.resolve_attention(config, "cpu", "float32")
    config.model.attention = "cudnn"
    config.model.llm.blocks.num_heads = 16  # of 256 channels
    with pytest.raises(KernelError, match="those of llm have 256"):
        settings.resolve_attention(config, "gpu", "bfloat16")
    config.stage = "align"  # has no language model
    assert settings.resolve_attention(config, "gpu", "bfloat16") == "cudnn"
    model = settings.model_config(config, "bfloat16", attention="cudnn")
    for tower in (model.vision, model.fusion, model.llm, model.text):
        assert tower.blocks.attention == "cudnn"
    # Who answers reads caches.
    assert settings.model_config(config, "bfloat16").vision.blocks.attention == "xla"


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_cudnn_is_not_planned_without_a_gpu(capsys):
    words = "plan --topology h100:8 --config configs/m256.py:paper,stage=finetune"
    assert parallel([*words.split(), "--config.model.attention=cudnn"]) != 0
    assert "--config.model.attention=xla" in capsys.readouterr().err
