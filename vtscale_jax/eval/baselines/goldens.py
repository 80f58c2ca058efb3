"""The reducers against cases of the published code: a folder with `cases.json`.

`cases.json` lists, under `cases`, for each case its `file` (.npz), `n`,
`important_ratio`, `dominant` and `contextual`; the file holds the inputs
`cls_attention` [H, 1+P], `hidden` [1+P, D] and `keys` [H, 1+P, C], and what the
published code made of them: `vispruner_kept`, `vispruner_important`,
`visionzip_kept_with_cls`, `visionzip_targets`, `visionzip_sources`, `visionzip_assign`
and `visionzip_out`. Under `edge_behaviour_of_the_originals` it lists how many tokens
each gives for an n, or that it raises: `{"n": 8, "vispruner_r0_5_tokens": "raises
RuntimeError", "visionzip_c10_tokens": …}`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vtscale_jax.eval.baselines.reducers import Reducer, ReducerError, Seen
from vtscale_jax.eval.baselines.visionzip import VisionZip, zipped
from vtscale_jax.eval.baselines.vispruner import VisPruner, prune
from vtscale_jax.eval.goldens.benchmarks import GoldensError
from vtscale_jax.eval.goldens.checks import Check

INPUTS = ("cls_attention", "hidden", "keys")
VISPRUNER = ("vispruner_kept", "vispruner_important")
VISIONZIP_ROWS = (
    "visionzip_kept_with_cls",
    "visionzip_targets",
    "visionzip_sources",
    "visionzip_assign",
)
VISIONZIP = (*VISIONZIP_ROWS, "visionzip_out")
EDGES = "edge_behaviour_of_the_originals"
RTOL, ATOL = 1e-5, 2e-6  # of float32 sums in another order
CASE_FIELDS = ("file", "n", "important_ratio", "dominant", "contextual")


def check(folder: Path) -> list[Check]:
    """Every case and every edge of `folder`, in its order.

    Indices must be the same, merged features within 1e-5 relative and 2e-6 absolute.
    Where the published code raises, ours must refuse too or name its extension. Raises
    GoldensError when there is no such folder, or a file lacks what it should hold.
    """
    listed = _listed(folder)
    checks = []
    for case in listed["cases"]:
        missing = [field for field in CASE_FIELDS if field not in case]
        if missing:
            raise GoldensError(
                f"{folder / 'cases.json'}: case {case.get('file', '?')} lacks "
                f"{', '.join(missing)} (expected {', '.join(CASE_FIELDS)})"
            )
        path = folder / case["file"]
        arrays = _arrays(path, (*INPUTS, *VISPRUNER, *VISIONZIP))
        for method, compare in (("vispruner", _vispruner), ("visionzip", _visionzip)):
            try:
                ok, detail = compare(case, arrays)
            except ReducerError as error:
                ok, detail = False, f"refused: {error}"
            checks.append(Check(f"{path.stem} {method}", ok, detail))
    edges = listed.get(EDGES, [])
    if edges and listed["cases"]:
        arrays = _arrays(folder / listed["cases"][0]["file"], INPUTS)
        for edge in edges:
            checks += _edge(folder, edge, seen_of(arrays))
    return checks


def seen_of(arrays: Mapping[str, np.ndarray]) -> Seen:
    """What a reducer may read, from the arrays of a case."""
    hidden = jnp.asarray(arrays["hidden"], jnp.float32)
    return Seen(
        features=hidden[1:],
        hidden=hidden,
        cls_attention=jnp.asarray(arrays["cls_attention"], jnp.float32),
        keys=jnp.asarray(arrays["keys"], jnp.float32),
        key=jnp.zeros(2, jnp.uint32),
    )


def _vispruner(
    case: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[bool, str]:
    seen = seen_of(arrays)
    reducer = VisPruner(important=case["important_ratio"])
    plan = reducer.settle(len(seen.features), case["n"])
    made = jax.jit(prune, static_argnums=2)(seen.features, seen.cls_attention, plan)
    # Important tokens are a set: the published code never uses their order.
    pairs = {
        "vispruner_kept": made.kept,
        "vispruner_important": np.sort(made.important),
    }
    wanted = {**arrays, "vispruner_important": np.sort(arrays["vispruner_important"])}
    differs = [d for k, v in pairs.items() if (d := _index_difference(k, v, wanted[k]))]
    vectors = np.asarray(reducer.apply(seen, plan))
    expected = arrays["hidden"][1:][arrays["vispruner_kept"]]
    differs += _feature_difference("features", vectors, expected)
    same = f"{case['n']} patches, {len(plan.rounds)} rounds: indices identical"
    return not differs, "; ".join(differs) or same


def _visionzip(
    case: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[bool, str]:
    seen = seen_of(arrays)
    reducer = VisionZip(contextual=case["contextual"])
    n = case["dominant"] + case["contextual"]
    plan = reducer.settle(len(seen.features), n)
    rows = jax.jit(zipped, static_argnums=2)(seen.cls_attention, seen.keys, plan)
    differs = [
        difference
        for name, made in zip(VISIONZIP_ROWS, rows, strict=True)
        if (difference := _index_difference(name, made, arrays[name]))
    ]
    out = np.asarray(jax.jit(reducer.apply, static_argnums=1)(seen, plan))
    differs += _feature_difference("visionzip_out", out, arrays["visionzip_out"])
    same = (
        f"{plan.dominant} + {plan.contextual} tokens: indices identical, features "
        f"within {_largest(out, arrays['visionzip_out']):.1e}"
    )
    return not differs, "; ".join(differs) or same


def _index_difference(name: str, made: Any, wanted: np.ndarray) -> str:
    """Where two lists of indices differ first; empty when they do not."""
    made = np.asarray(made)
    if made.shape != wanted.shape:
        return f"{name}: {len(made)} indices, expected {len(wanted)}"
    at = np.flatnonzero(made != wanted)
    if not len(at):
        return ""
    return (
        f"{name}: {len(at)} of {len(wanted)} differ, first at {at[0]}: got "
        f"{made[at[0]]}, expected {wanted[at[0]]}"
    )


def _feature_difference(name: str, made: np.ndarray, wanted: np.ndarray) -> list[str]:
    if made.shape != wanted.shape:
        return [f"{name}: shape {made.shape}, expected {wanted.shape}"]
    if np.allclose(made, wanted, rtol=RTOL, atol=ATOL):
        return []
    return [f"{name}: differs by up to {_largest(made, wanted):.2e}"]


def _largest(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(made - wanted)))


def _edge(folder: Path, edge: Mapping[str, Any], seen: Seen) -> Iterator[Check]:
    """One n that the published code was tried at, for each method."""
    if "n" not in edge:
        raise GoldensError(f"{folder / 'cases.json'}: {EDGES}: {edge} lacks n")
    for field, told in edge.items():
        if field == "n":
            continue
        reducer = _named_in(field)
        if reducer is None:
            raise GoldensError(
                f"{folder / 'cases.json'}: {EDGES}, n = {edge['n']}: unknown field "
                f"{field!r}, expected vispruner_r0_5_tokens or visionzip_c10_tokens "
                "(or another r or c)"
            )
        name = f"edge n={edge['n']} {reducer.name}"
        yield Check(name, *_edge_holds(reducer, edge["n"], told, seen))


def _named_in(field: str) -> Reducer | None:
    """The reducer of a field such as `vispruner_r0_5_tokens`."""
    if found := re.fullmatch(r"vispruner_r(\d+)_(\d+)_tokens", field):
        return VisPruner(important=float(f"{found[1]}.{found[2]}"))
    if found := re.fullmatch(r"visionzip_c(\d+)_tokens", field):
        return VisionZip(contextual=int(found[1]))
    return None


def _edge_holds(
    reducer: Reducer, n: int, told: int | str, seen: Seen
) -> tuple[bool, str]:
    """Exactly n where the published code gives n and by its own rule; otherwise a
    refusal, or exactly n by an extension that is named."""
    published = f"published: {told}"
    try:
        plan = reducer.settle(len(seen.features), n)
    except ReducerError as error:
        # It also refuses what the published code answers with another number, and an
        # image without tokens.
        return told != n or n == 0, f"{published}; refused: {error}"
    shape = jax.eval_shape(lambda s: reducer.apply(s, plan), seen).shape
    said = plan.extension or "the published rule"
    ok = shape[0] == n and (told == n) == (not plan.extension)
    return ok, f"{published}; {shape[0]} tokens by {said}"


def _listed(folder: Path) -> dict[str, Any]:
    path = folder / "cases.json"
    if not path.is_file():
        raise GoldensError(
            f"{path} is not there; give a folder of reducer cases, which has "
            "cases.json and the .npz files that it lists"
        )
    try:
        listed = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise GoldensError(f"{path}: not JSON: {error}") from error
    if not isinstance(listed, dict) or not isinstance(listed.get("cases"), list):
        raise GoldensError(f"{path}: expected an object with a list `cases`")
    return listed


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise GoldensError(f"{path} is not there, though cases.json lists it")
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in names if name not in file]
        if missing:
            raise GoldensError(
                f"{path} lacks {', '.join(missing)} (it has {', '.join(file)})"
            )
        return {name: file[name] for name in names}
