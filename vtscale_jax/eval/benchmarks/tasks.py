"""The paper's fifteen benchmarks as data: how each is asked, cut off and reported.

Names, image folders, file endings and checksums are VLMEvalKit's; the limits of
generation are those that the paper's own wrapper uses.
"""

import difflib
from collections.abc import Mapping
from typing import Literal, NamedTuple

from vtscale_jax.eval.scoring.verdicts import Version

Kind = Literal["yes_no", "multiple_choice", "ocr", "caption", "open"]


class UnknownTaskError(ValueError):
    """A name that is of no benchmark."""


class Task(NamedTuple):
    """A benchmark.

    `vlmevalkit_type` is VLMEvalKit's TYPE. `image_root` is the folder of its image
    files below `images/`. `columns` are those that its table must have beside the
    images. `max_new_tokens` is the paper's limit. `score_suffix` ends the name of
    VLMEvalKit's score file. A reported score is `scale` at best, or a sum where `scale`
    is None. `reported` names the numbers to quote, in the row whose split is Overall
    where there is such a row. `values` lists what a column may hold (comma-joined in
    POPE), `complete` the columns of which every listed value must occur. `md5` is the
    checksum of the official table by version.
    """

    name: str
    kind: Kind
    vlmevalkit_type: Literal["Y/N", "MCQ", "VQA", "Caption"]
    image_root: str
    columns: tuple[str, ...]
    max_new_tokens: int
    score_suffix: Literal["_score.csv", "_score.json", "_acc.csv"]
    scale: float | None
    reported: tuple[str, ...]
    md5: Mapping[Version, str]
    values: Mapping[str, tuple[str, ...]] = {}
    complete: tuple[str, ...] = ()


MME_CATEGORIES = (
    *("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark"),
    *("position", "posters", "scene", "code_reasoning", "commonsense_reasoning"),
    *("numerical_calculation", "text_translation"),
)
OCRBENCH_CATEGORIES = (
    *("Regular Text Recognition", "Irregular Text Recognition"),
    *("Artistic Text Recognition", "Handwriting Recognition"),
    *("Digit String Recognition", "Non-Semantic Text Recognition"),
    *("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction"),
    "Handwritten Mathematical Expression Recognition",
)


def _both(md5: str) -> dict[Version, str]:
    return {"paper": md5, "current": md5}


def _yes_no(
    name: str,
    md5: str,
    columns: tuple[str, ...],
    reported: tuple[str, ...],
    *,
    scale: float | None = 100.0,
    values: Mapping[str, tuple[str, ...]] | None = None,
    complete: tuple[str, ...] = (),
) -> Task:
    return Task(
        name=name,
        kind="yes_no",
        vlmevalkit_type="Y/N",
        image_root=name,
        columns=("index", "question", "answer", *columns),
        max_new_tokens=32,
        score_suffix="_score.csv",
        scale=scale,
        reported=reported,
        md5=_both(md5),
        values=values or {},
        complete=complete,
    )


def _choice(name: str, paper: str, current: str | None = None) -> Task:
    return Task(
        name=name,
        kind="multiple_choice",
        vlmevalkit_type="MCQ",
        image_root=name,
        columns=("index", "question", "answer", "A", "B"),
        max_new_tokens=32,
        score_suffix="_acc.csv",
        scale=1.0,
        reported=("Overall",),
        md5={"paper": paper, "current": current or paper},
    )


def _open(
    name: str,
    md5: str,
    limit: int,
    *,
    image_root: str | None = None,
    splits: tuple[str, ...] = (),
) -> Task:
    return Task(
        name=name,
        kind="open",
        vlmevalkit_type="VQA",
        image_root=image_root or name,
        columns=("index", "question", "answer", *(("split",) if splits else ())),
        max_new_tokens=limit,
        score_suffix="_acc.csv",
        scale=100.0,
        reported=(*splits, "Overall"),
        md5=_both(md5),
        values={"split": splits} if splits else {},
    )


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _yes_no(
            "MME",
            "b36b43c3f09801f5d368627fb92187c3",
            ("category", "image_path"),
            ("perception", "reasoning"),
            scale=None,
            values={"category": MME_CATEGORIES},
            complete=("category",),
        ),
        _yes_no(
            "HallusionBench",
            "0c23ac0dc9ef46832d7a24504f2a0c7c",
            ("category", "l2-category"),
            ("aAcc", "fAcc", "qAcc"),
        ),
        _yes_no(
            "POPE",
            "c12f5acb142f2ef1f85a26ba2fbe41d5",
            ("category",),
            ("Overall", "acc", "precision", "recall"),
            values={"category": ("adversarial", "popular", "random")},
        ),
        Task(
            name="OCRBench",
            kind="ocr",
            vlmevalkit_type="VQA",
            image_root="OCRBench",
            columns=("index", "question", "answer", "category"),
            max_new_tokens=512,
            score_suffix="_score.json",
            scale=None,
            reported=("Final Score", "Final Score Norm"),
            md5=_both("e953d98a987cc6e26ef717b61260b778"),
            values={"category": OCRBENCH_CATEGORIES},
        ),
        Task(
            name="COCO_VAL",
            kind="caption",
            vlmevalkit_type="Caption",
            image_root="COCO",
            columns=("index", "answer"),
            max_new_tokens=32,
            score_suffix="_score.json",
            scale=100.0,  # of Bleu and ROUGE_L; CIDEr may reach ten times that
            reported=("Bleu", "ROUGE_L", "CIDEr"),
            md5=_both("72a5079dead060269ac222c5aa5128af"),
        ),
        _choice(
            "RealWorldQA",
            "92321028d2bc29040284b6674721e48f",
            "4de008f55dc4fd008ca9e15321dc44b7",
        ),
        _choice("MMStar", "e1ecd2140806c1b1bbf54b43372efb9e"),
        _choice("SEEDBench_IMG", "68017231464752261a2526d6ca3a10c0"),
        _choice("SEEDBench2", "4ec15cf864c4f16274112284f531813e"),
        _choice("SEEDBench2_Plus", "e32d3216dc4f452b0fe497a52015d1fd"),
        _choice("ScienceQA_TEST", "e42e9e00f9c59a80d8a5db35bc32b71f"),
        _choice("AI2D_TEST", "0f593e0d1c7df9a3d69bf1f947e71975"),
        _open(
            "OCRVQA_TESTCORE",
            "c5239fe77db8bdc1f2ad8e55e0d1fe97",
            100,
            image_root="OCRVQA",
        ),
        _open(
            "ChartQA_TEST",
            "c902e0aa9be5582a7aad6dcf52734b42",
            100,
            splits=("test_human", "test_augmented"),
        ),
        _open("TextVQA_VAL", "b233b31f551bbf4056f2f955da3a92cd", 10),
    )
}


def get_task(name: str) -> Task:
    """The benchmark of this name, as VLMEvalKit spells it. UnknownTaskError suggests
    the nearest names and lists all."""
    if name in TASKS:
        return TASKS[name]
    by_lower = {known.lower(): known for known in TASKS}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    hint = (
        f"Did you mean {' or '.join(by_lower[one] for one in near)}? " if near else ""
    )
    raise UnknownTaskError(
        f"task {name!r} is not known. {hint}There are {', '.join(TASKS)}"
    )
