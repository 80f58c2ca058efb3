"""Made-up images as a reducer sees them."""

import jax.numpy as jnp
import numpy as np

from vtscale_jax.eval.baselines.reducers import Seen, image_key


def seen_image(seed, num_patches=36, width=16, heads=3, key_width=5):
    """Random features of one image; its key is that of an image made of the seed."""
    rng = np.random.default_rng(seed)
    rows = num_patches + 1
    hidden = rng.standard_normal((rows, width)).astype(np.float32)
    image = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Seen(
        features=jnp.asarray(hidden[1:]),
        hidden=jnp.asarray(hidden),
        cls_attention=jnp.asarray(
            rng.dirichlet(np.ones(rows), heads).astype(np.float32)
        ),
        keys=jnp.asarray(
            rng.standard_normal((heads, rows, key_width)).astype(np.float32)
        ),
        key=jnp.asarray(image_key(image)),
    )
