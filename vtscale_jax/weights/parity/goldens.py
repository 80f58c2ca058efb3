"""Runs our model on a folder of goldens from the authors' PyTorch code and compares.

A golden folder holds `config.json`, `weights.safetensors` and one `.npz` per case; what
kind of model it is, every size and every case are read from there. Quantities of a case
are compared by name; a name that is not known here is reported as not checked.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vtscale_jax.stages import parameter_shapes
from vtscale_jax.vision import VisionConfig, VisionTower
from vtscale_jax.vlm import VLM, AlignModel
from vtscale_jax.weights.authors import towers
from vtscale_jax.weights.files.tensors import open_tensors, read_json
from vtscale_jax.weights.naming import layouts
from vtscale_jax.weights.naming.names import import_tree
from vtscale_jax.weights.parity import golden_batches as batches
from vtscale_jax.weights.parity import golden_blocks, golden_runs
from vtscale_jax.weights.parity.golden_batches import Arrays
from vtscale_jax.weights.parity.golden_runs import Answers, Value

# What a variant's name says of the vision tower, and the fields that say it here.
VARIANT_PARTS = {
    "merge": {"local_merge": True},
    "nomerge": {"local_merge": False},
    "nolf": {"newline": False},
    "keepcls": {"keep_class": True},
}
VARIANT_SUFFIX = "__last_hidden_state"
FUSION_INPUTS = (
    "in__pixel_values",
    "in__crop_index",
    "in__que_input_ids",
    "in__que_input_tps",
    "in__que_attention_mask",
)
ALIGN_INPUTS = ("in__ans_input_ids", "in__ans_input_tps", "in__ans_attention_mask")
LLM_INPUTS = ("in__input_ids", "in__input_tps", "in__attention_mask")


class Quantity(NamedTuple):
    """How far one quantity is off; not finite, or over `tolerance`, is a failure."""

    name: str
    error: float
    tolerance: float

    @property
    def failed(self) -> bool:
        """Whether the error exceeds the tolerance (NaN does)."""
        return not self.error <= self.tolerance

    @property
    def badness(self) -> float:
        """The error in tolerances; infinite for an exact quantity that differs."""
        if math.isnan(self.error):
            return math.inf
        if self.tolerance:
            return self.error / self.tolerance
        return math.inf if self.error else 0.0


class CaseReport(NamedTuple):
    """What was compared in one case, and the names that were not.

    `refused` says why a case could not be run at all; such a case has failed.
    """

    case: str
    quantities: tuple[Quantity, ...]
    unchecked: tuple[str, ...] = ()
    refused: str = ""

    @property
    def worst(self) -> Quantity:
        """The quantity nearest to, or furthest beyond, its tolerance."""
        return max(self.quantities, key=lambda q: q.badness)

    @property
    def max_error(self) -> float:
        """The largest error of any quantity; infinite when one is not a number, or
        when none was compared."""
        if any(math.isnan(q.error) for q in self.quantities):
            return math.inf
        return max((q.error for q in self.quantities), default=math.inf)

    @property
    def failed(self) -> bool:
        """Whether any quantity failed, or none was compared."""
        none = not self.quantities
        return bool(self.refused) or none or any(q.failed for q in self.quantities)

    def line(self) -> str:
        """One line for people."""
        mark = "FAIL" if self.failed else "ok  "
        if not self.quantities:
            return f"{mark} {self.case}: {self.refused or 'nothing to compare'}"
        text = (
            f"{mark} {self.case}: max error {self.max_error:.2e} over "
            f"{len(self.quantities)} quantities; worst {self.worst.name} "
            f"({self.worst.error:.2e}, tolerance {self.worst.tolerance:.0e})"
        )
        if self.unchecked:
            text += f"; not checked: {', '.join(self.unchecked)}"
        return text


class Golden(NamedTuple):
    """One golden folder in memory.

    `kind` is "vision", "align" or "vlm"; `config` a VisionConfig for the first and a
    ModelConfig for the others.
    """

    name: str
    kind: str
    config: Any
    params: Mapping[str, Any]
    json: Mapping[str, Any]
    cases: dict[str, Arrays]


KINDS = {
    "vision": (VisionTower, layouts.VISION_LAYOUT),
    "align": (AlignModel, layouts.ALIGN_LAYOUT),
    "vlm": (VLM, layouts.VLM_LAYOUT),
}


def kind_of(config: Mapping[str, Any]) -> str | None:
    """Which model a golden folder's config.json is of; None when of none of ours."""
    if "llm_config" in config and "config" in config:
        return "vlm"
    if "clip_config" in config:
        return "align"
    return "vision" if "vision_config" in config else None


def find_folders(root: Path) -> list[Path]:
    """Golden folders: `root` itself or its direct children, in order of name.

    Raises ValueError when there is none.
    """
    found = [
        path
        for path in [root, *sorted(p for p in root.glob("*/"))]
        if (path / "config.json").is_file()
        and any(path.glob("*.safetensors"))
        and kind_of(read_json(path / "config.json"))
    ]
    if not found:
        raise ValueError(
            f"{root}: found no goldens, expected folders such as G2_vision, G3_clip "
            "and G4_vlm, each with config.json, weights.safetensors and .npz files"
        )
    return found


def open_folder(path: Path) -> Golden:
    """Reads a golden folder: config, weights through the name table, cases.

    Raises ValueError as the name table does, and when there is no case.
    """
    config = read_json(path / "config.json")
    kind = kind_of(config)
    cases = {p.stem: _read_arrays(p) for p in sorted(path.glob("*.npz"))}
    if kind is None or not cases:
        raise ValueError(
            f"{path}: got the keys {sorted(config)} and {len(cases)} .npz files, "
            "expected the config.json of goldens and at least one case"
        )
    if kind == "vision":
        ours = towers.vision_config(config["vision_config"])
    else:
        stage1 = config["clip_config"] if kind == "align" else config["config"]
        make = towers.align_config if kind == "align" else towers.vlm_config
        table = make(stage1, 1).fusion
        size = table.vocab_size + table.num_query_rows
        ours = make(stage1, batches.first_query_id(cases, size))
    model, layout = KINDS[kind]
    targets = parameter_shapes(model, ours)
    params = import_tree(layout, open_tensors(path), targets)
    return Golden(path.name, kind, ours, params, config, cases)


def _read_arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def cases_without_file(golden: Golden) -> list[str]:
    """Cases that config.json speaks of and no .npz file holds: not checked."""
    described = {**golden.json.get("cases", {}), **golden.json.get("generation", {})}
    return sorted(described.keys() - golden.cases.keys())


def check_file(golden: Golden, case: str) -> list[CaseReport]:
    """The reports of one .npz file: one, or one per variant of the vision tower.

    Matrix products are float32 throughout, also where the accelerator's default is
    less.
    """
    with jax.default_matmul_precision("highest"):
        if golden.kind == "vision":
            return list(_check_vision(golden, case))
        return [_check_model(golden, case)]


def _check_vision(golden: Golden, case: str) -> Iterator[CaseReport]:
    """States of the layers, then every variant of what comes after them."""
    prefix = golden.name if len(golden.cases) == 1 else f"{golden.name}/{case}"
    arrays = dict(golden.cases[case])
    if "pixel_values" not in arrays:
        raise ValueError(f"{prefix}: got no pixel_values, expected the tower's input")
    crops = batches.to_crops(arrays.pop("pixel_values"))
    run = functools.partial(
        golden_runs.vision_tokens, params=golden.params, crops=crops
    )
    layers = golden_runs.vision_layers(golden.config, golden.params, crops)
    reports = []
    for name in [n for n in arrays if n.endswith(VARIANT_SUFFIX)]:
        variant = name.removesuffix(VARIANT_SUFFIX)
        config = _variant_config(golden.config, variant)
        if config is not None:
            answers = Answers({name: run(config)})
            theirs = {name: arrays.pop(name)}
            reports.append(_report(f"{prefix}/{variant}", answers, theirs))
    # What is left is of the layers, of the merge alone, or unknown.
    values = layers.values
    if "merge_only" in arrays:
        bare = {"local_merge": True, "newline": False, "keep_class": False}
        merge = dataclasses.replace(golden.config, **bare)
        values = values | {"merge_only": run(merge)}
    yield _report(f"{prefix}/layers", layers._replace(values=values), arrays)
    yield from reports


def _variant_config(config: VisionConfig, variant: str) -> VisionConfig | None:
    """The tower that a variant's name describes; None when a part is unknown.

    What the name leaves out is on, as in the reference.
    """
    parts = variant.split("_")
    if not all(part in VARIANT_PARTS for part in parts):
        return None
    fields = {"local_merge": True, "newline": True, "keep_class": False}
    for part in parts:
        fields |= VARIANT_PARTS[part]
    return dataclasses.replace(config, **fields)


def _check_model(golden: Golden, case: str) -> CaseReport:
    """One case of a whole model: forward, loss and gradients, or generation."""
    arrays, config, params = golden.cases[case], golden.config, golden.params
    tokens_per_crop = config.vision.tokens_per_crop
    described = golden.json.get("cases", {}).get(case, {})
    needed = FUSION_INPUTS + (ALIGN_INPUTS if golden.kind == "align" else LLM_INPUTS)
    missing = [name for name in needed if name not in arrays]
    if missing:
        refused = f"got no {', '.join(missing)}; the case lacks inputs"
        return CaseReport(f"{golden.name}/{case}", (), refused=refused)
    if golden.kind == "align":
        batch = batches.align_batch(arrays, tokens_per_crop)
        answers = golden_runs.align_answers(config, params, batch)
    elif "out__new_tokens" in arrays:
        described = golden.json.get("generation", {}).get(case, {})
        batch = batches.vlm_batch(arrays, tokens_per_crop)
        count = arrays["out__new_tokens"].size
        answers = golden_runs.greedy_answers(config, params, batch, count)
    else:
        batch = batches.vlm_batch(arrays, tokens_per_crop)
        answers = golden_runs.vlm_answers(config, params, batch)
    theirs = {n: x for n, x in arrays.items() if not n.startswith("in__")}
    # config.json repeats some answers; a name that it shares with ours is an answer.
    theirs |= {
        f"config:{n}": np.asarray(x)
        for n, x in described.items()
        if n in answers.values
    }
    theirs |= {
        f"grad_norm__{n}": np.asarray(x)
        for n, x in described.get("grad_norms", {}).items()
    }
    return _report(f"{golden.name}/{case}", answers, theirs)


def _report(case: str, answers: Answers, theirs: Arrays) -> CaseReport:
    """Compares by name; what only one side has is listed, never passed over."""
    quantities, unchecked = [], []
    norms_given = any(name.startswith("grad_norm__") for name in theirs)
    for name, array in theirs.items():
        kind, bare = _split_name(name)
        if kind == "grad" and bare in answers.gradients:
            quantities.append(_compare_gradient(name, answers.gradients[bare], array))
        elif kind == "grad_norm" and bare in answers.gradients:
            norm = np.linalg.norm(answers.gradients[bare].astype(np.float64))
            quantities.append(_compare_gradient(name, norm, array))
        elif kind not in ("grad", "grad_norm") and bare in answers.values:
            quantities.append(compare(name, answers.values[bare], array))
        else:
            unchecked.append(name)
    if norms_given:
        absent = [n for n in answers.gradients if f"grad_norm__{n}" not in theirs]
        unchecked += [f"grad_norm__{n} (not given)" for n in absent]
    plain = {_split_name(name)[1]: array for name, array in theirs.items()}
    for tower in answers.towers:
        for step in golden_blocks.steps(tower, plain):
            value = Value(step.ours, golden_runs.BLOCK, tower.keep)
            quantities.append(compare(step.name, value, plain[step.target]))
    for name, (array, value) in answers.pairs.items():
        quantities.append(compare(name, value, array))
    return CaseReport(case, tuple(quantities), tuple(unchecked))


def _split_name(name: str) -> tuple[str, str]:
    """`grad__a.b` → ("grad", "a.b"); a name without such a prefix has kind ""."""
    found = re.match(r"(out|grad|grad_norm)__|(config):", name)
    if not found:
        return "", name
    return found[1] or found[2], name[found.end() :]


def compare(name: str, ours: Value, theirs: np.ndarray) -> Quantity:
    """Largest absolute difference at valid positions; infinite for unlike shapes."""
    a, b = np.asarray(ours.array), np.asarray(theirs)
    if a.shape != b.shape:
        return Quantity(f"{name} ({a.shape} for {b.shape})", math.inf, ours.tolerance)
    if ours.valid is not None:
        a, b = a[ours.valid], b[ours.valid]
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return Quantity(name, float(difference.max(initial=0.0)), ours.tolerance)


def _compare_gradient(name: str, ours: Any, theirs: np.ndarray) -> Quantity:
    """Largest difference in units of the gradient's own size."""
    b = theirs.astype(np.float64)
    scale = float(np.abs(b).max(initial=0.0)) + golden_runs.GRADIENT_FLOOR
    quantity = compare(name, Value(ours, golden_runs.GRADIENT), theirs)
    return quantity._replace(error=quantity.error / scale)
