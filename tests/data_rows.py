"""Rows and images in the form of the public sets, for the tests of `vtscale_jax.data`.

Fields, nesting and oddities are those that the sets' documentation describes; texts and
pictures are invented.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """A small picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height))


def save(root: Path, name: str, seed: int, **size: int) -> None:
    """Saves a picture below a root, in the format of its name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(root / name)


def write_json(path: Path, rows: Any) -> Path:
    """A JSON array, as LLaVA and SVIT come."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A file of lines, as mPLUG's sets come."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What a JSONL file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def llava_turns(*texts: str) -> list[dict[str, str]]:
    """Turns of LLaVA: human, gpt, human, ..."""
    return [
        {"from": ("human", "gpt")[index % 2], "value": text}
        for index, text in enumerate(texts)
    ]


def svit_entry(*texts: str, **more: Any) -> dict[str, Any]:
    """An entry of SVIT: user, gpt, user, ..."""
    content = [
        {"from": ("user", "gpt")[index % 2], "value": text}
        for index, text in enumerate(texts)
    ]
    return {"content": content, **more}


def doc_row(image: Any, *texts: str, dataset: str = "DocVQA", **more: Any) -> Any:
    """A row of DocDownstream: user, assistant, user, ..."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]
    about = {"task_name": "qa_sft", "dataset_name": dataset}
    return {"image": image, "messages": messages, **about, **more}


def plain_row(image: str | None, *texts: str, **more: Any) -> dict[str, Any]:
    """A record of ours: user, assistant, user, ..."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]
    return {"image": image, "messages": messages, **more}


def llava_folder(root: Path, rows: int = 40) -> tuple[Path, Path]:
    """(file, image root) of good rows of every origin, some with several turns."""
    folders = ("coco/train2017", "gqa/images", "ocr_vqa/images", "vg/VG_100K")
    made = []
    for number in range(rows):
        image = f"{folders[number % 4]}/{number:012d}.jpg"
        save(root / "images", image, number)
        turns = [f"<image>\nWhat is number {number}?", f"It is picture {number}."]
        turns += ["Where is it?", "At [0.25, 0.50, 0.75, 1.00]."] * (number % 3)
        made.append({"id": f"{number:012d}", "image": image})
        made[-1]["conversations"] = llava_turns(*turns)
    return write_json(root / "llava.json", made), root / "images"
