"""Models of this package inside other projects' harnesses.

python -m vtscale_jax.eval.adapters --run RUN -- VLMEvalKit/run.py …   VLMEvalKit
python -m lmms_eval --model vtscale --model_args run=RUN …             lmms-eval
"""

from typing import Any


def lmms_eval_manifest() -> Any:
    """What lmms-eval's entry points `lmms_eval.models` hold of this package: the model
    `vtscale`. lmms-eval asks whenever it starts, so neither JAX nor the class is
    imported here."""
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelManifest,
    )

    return ModelManifest(
        model_id="vtscale", simple_class_path=f"{__name__}.lmms_eval.VTScaleLmms"
    )
