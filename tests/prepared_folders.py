"""Small prepared folders: records with images, as `data prepare` leaves them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vtscale_jax.data.prepared_folder import write_prepared


def picture(seed: int, kind: str = "PNG", side: int = 96) -> bytes:
    """The bytes of an image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def records(number: int, seed: int = 0) -> list[dict]:
    """Records of one or two turns with what records may have: text of any script,
    families, system prompts, and every fifth without an image."""
    found = []
    for i in range(number):
        turns = 1 + (i + seed) % 2
        messages = []
        for turn in range(turns):
            messages += [
                {
                    "role": "user",
                    "content": f"What is in row {turn} of page {i}? é\n中",
                },
                {"role": "assistant", "content": f"It says {i * 7 + seed}. " * (i + 1)},
            ]
        messages[0] |= {"family": "read"} if i % 3 == 0 else {}
        record = {"id": f"page-{i}", "image": f"pages/{i}.png", "messages": messages}
        if i % 5 == 4:
            record["image"] = None
        if i % 4 == 1:
            record["system"] = "" if i == 1 else "Be brief."
        found.append(record)
    return found


def prepared(folder: Path, number: int = 12, *, seed: int = 0, side: int = 96) -> Path:
    """A prepared folder of `number` records with its images below folder/images."""
    images = folder / "images"
    (images / "pages").mkdir(parents=True)
    rows = records(number, seed)
    for i, row in enumerate(rows):
        if row["image"]:
            (images / row["image"]).write_bytes(picture(seed * 1000 + i, side=side))
    rewrite(folder, rows)
    return folder


def rewrite(folder: Path, rows: list[dict]) -> None:
    """Prepares the folder's records anew."""
    write_prepared(
        folder,
        rows,
        source="jsonl",
        inputs={"path": "made.jsonl", "bytes": 0, "sha256": ""},
        images=str(folder / "images"),
        options={},
        report=dict,
    )
