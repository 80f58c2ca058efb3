"""Our LLaVA against what transformers computed with a tiny one of random weights.

A folder holds `config.json` and `weights.safetensors` in a layout of llava-hf,
`images.npz` (RGB images and their pixels, cropped and padded) and `io.npz` (prompts,
states, logits, a greedy answer). Rows may be padded on the left there; ours are not.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vtscale_jax.eval.baselines.llava import Llava, LlavaConfig
from vtscale_jax.eval.baselines.pixels import VARIANTS, prepare
from vtscale_jax.eval.goldens.checks import Check
from vtscale_jax.generate import generate
from vtscale_jax.llm import splice
from vtscale_jax.vision import VisionConfig

# Absolute, on activations of order one: of a part, and of the whole model.
PART, WHOLE = 1e-5, 1e-4

Arrays = Mapping[str, np.ndarray]


def is_golden(folder: Path) -> bool:
    """Whether a folder is of this form."""
    names = ("config.json", "weights.safetensors", "images.npz", "io.npz")
    return all((folder / name).is_file() for name in names)


def check(
    folder: Path, params: Mapping[str, Any], config: LlavaConfig, image_token_id: int
) -> list[Check]:
    """Every quantity of a folder, with the model that was read from it (in float32)."""
    with np.load(folder / "images.npz") as file:
        images = dict(file)
    with np.load(folder / "io.npz") as file:
        io = dict(file)
    placed = jax.tree.map(jnp.asarray, dict(params))
    return [
        *_pixels(images, config.vision),
        *_tower(io, placed, config),
        *_rows(io, placed, config, image_token_id),
        _greedy(io, placed, config, image_token_id),
    ]


def _close(name: str, found: Any, expected: np.ndarray, tolerance: float) -> Check:
    found = np.asarray(found)
    if found.shape != expected.shape:
        return Check(name, False, f"shape {found.shape}, expected {expected.shape}")
    error = float(np.max(np.abs(found - expected)))
    # NaN is not close.
    return Check(name, error <= tolerance, f"off by {error:.1e}, at most {tolerance:g}")


def _pixels(images: Arrays, vision: VisionConfig) -> Iterator[Check]:
    for name in sorted(name for name in images if name.endswith("_rgb")):
        image, of = Image.fromarray(images[name]), name.removesuffix("_rgb")
        for variant in VARIANTS:
            found = prepare(image, vision.image_size, variant).transpose(2, 0, 1)
            expected = images[f"{of}_{variant}"]
            yield _close(f"llava {of} {variant}", found, expected, 1e-6)


def _tower(io: Arrays, params: Any, config: LlavaConfig) -> Iterator[Check]:
    view: Any = _see(params, io, config)
    (state,) = config.states
    yield _close("llava tower", view.hidden, io[f"vision_hidden_{state}"], PART)
    row = io["vision_attention_selected"][:, :, 0]
    yield _close("llava class attention", view.cls_attention, row, PART)
    features: Any = Llava(config).apply(
        {"params": params}, view.features, method=Llava.project
    )
    yield _close("llava projector", features, io["image_features"], PART)


def _see(params: Any, io: Arrays, config: LlavaConfig) -> Any:
    pixels = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1))
    return Llava(config).apply({"params": params}, pixels, method=Llava.see)


def _rows(
    io: Arrays, params: Any, config: LlavaConfig, image_id: int
) -> Iterator[Check]:
    """Embeddings, states and logits of each row, and that both ways to write a prompt,
    with one `<image>` and with as many as vectors, are the same."""
    vectors: Any = Llava(config).apply(
        {"params": params}, _see(params, io, config).features, method=Llava.project
    )
    last = max(int(n[11:]) for n in io if n.startswith("llm_hidden_"))

    def compute(model: Llava, vectors: Any, ids: Any, slots: Any) -> Any:
        embedded = splice(model.llm.embed(ids), vectors, slots)
        hidden = model.hidden(vectors, ids, ids >= 0, slots)
        return embedded, hidden, model.logits(hidden)

    for row in range(len(vectors)):
        ids, slots = _unpadded(io, row, image_id)
        short = io["input_ids_unexpanded"][row]
        short = short[io["attention_mask_unexpanded"][row] == 1]
        start = int(slots[0, 0])
        alike = np.array_equal(short[:start], ids[0, :start]) and np.array_equal(
            short[start + 1 :], ids[0, start + slots.shape[1] :]
        )
        yield Check(f"llava prompt of row {row}", alike, "around the image")
        made: Any = Llava(config).apply(
            {"params": params}, vectors[row : row + 1], ids, slots, method=compute
        )
        seen = io["attention_mask"][row] == 1
        for name, key, found, tolerance in zip(
            ("embeddings", "states", "logits"),
            ("llm_hidden_0", f"llm_hidden_{last}", "logits"),
            made,
            (PART, WHOLE, WHOLE),
            strict=True,
        ):
            yield _close(
                f"llava {name} of row {row}", found[0], io[key][row][seen], tolerance
            )


def _unpadded(io: Arrays, row: int, image_id: int) -> tuple[Any, Any]:
    """Ids of a row without its padding, and the places of the image's vectors."""
    ids = io["input_ids"][row][io["attention_mask"][row] == 1].astype(np.int32)
    return jnp.asarray(ids[None]), jnp.asarray(np.flatnonzero(ids == image_id)[None])


def _greedy(io: Arrays, params: Any, config: LlavaConfig, image_id: int) -> Check:
    ids, slots = _unpadded(io, 0, image_id)
    vectors: Any = Llava(config).apply(
        {"params": params}, _see(params, io, config).features, method=Llava.project
    )
    expected = io["greedy_row0_ids"].tolist()

    @jax.jit
    def answer(params: Any, vectors: Any) -> Any:
        return generate(
            params["llm"],
            ids,
            ids >= 0,
            vectors,
            slots,
            config=config.llm,
            max_new_tokens=len(expected),
            eos_ids=(-1,),  # none: the recorded answer goes on to its length
        )

    found = np.asarray(answer(params, vectors[:1]))[0].tolist()
    return Check("llava greedy answer", found == expected, f"{len(expected)} tokens")
