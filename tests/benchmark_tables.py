"""Small benchmark tables made for a test, and the goldens' folders."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vtscale_jax.eval.benchmarks.tasks import TASKS

GOLDENS = Path(__file__).parent / "golden" / "eval"
NAMES = tuple(TASKS)


def image_bytes(seed: int, side: int = 16, *, mode: str = "RGB") -> bytes:
    """A PNG of noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def encoded(data: bytes) -> str:
    """Base64 as a table has it."""
    return base64.b64encode(data).decode()


def write_table(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A TSV file of these rows; every cell is written as it is."""
    columns = list(rows[0])
    lines = ["\t".join(columns)]
    lines += ["\t".join(str(row[name]) for name in columns) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def question_rows(number: int, **columns: Sequence[object]) -> list[dict[str, object]]:
    """Rows of OCRVQA's columns, each with an image of its own; `columns` go before."""
    made = {
        "index": list(range(number)),
        "image": [encoded(image_bytes(i)) for i in range(number)],
        "question": [f"What is word {i}?" for i in range(number)],
        "answer": [f"word {i}" for i in range(number)],
        **columns,
    }
    return [{name: cells[i] for name, cells in made.items()} for i in range(number)]
