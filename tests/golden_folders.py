"""The golden folders as the authors' code wrote them, put together from small copies.

The stage-2 weights repeat the vision tower and the fusion decoder of stage 1, so the
copy under tests/golden/G4_vlm keeps only what is its own.
"""

import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

OWN = "weights_without_backbone.safetensors"
BACKBONE = ("clip_model.vision_model.", "imgque_model.")


def stage2_weights(golden_dir):
    """All tensors of the stage-2 file by name."""
    shared = load_file(golden_dir / "G3_clip" / "weights.safetensors")
    tensors = load_file(golden_dir / "G4_vlm" / OWN)
    tensors |= {
        f"imgque_backbone.{name}": tensor
        for name, tensor in shared.items()
        if name.startswith(BACKBONE)
    }
    return tensors


def put_together(golden_dir: Path, into: Path) -> Path:
    """Writes G2_vision, G3_clip and G4_vlm under `into`, each complete."""
    for name in ("G2_vision", "G3_clip", "G4_vlm"):
        shutil.copytree(golden_dir / name, into / name)
    (into / "G4_vlm" / OWN).unlink()
    save_file(stage2_weights(golden_dir), into / "G4_vlm" / "weights.safetensors")
    return into
