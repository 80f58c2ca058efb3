"""The conditions the other tests count on are really in force."""

import importlib
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from type_checks import has_array

from vtscale_jax import losses, paths

PACKAGE = Path(paths.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
)


def test_eight_devices():
    assert jax.default_backend() == "cpu"
    assert jax.device_count() == 8


def test_child_processes_get_eight_devices():
    code = "import jax; print(jax.device_count())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "8", child.stderr


def test_types_are_checked():
    with pytest.raises(TypeCheckError, match="path"):
        paths.match(3, [(".*", 1)])  # pyright: ignore[reportArgumentType]


def test_shapes_are_checked():
    logits = jnp.zeros((2, 3, 5))
    targets, mask = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)
    assert losses.answer_loss(logits, targets, mask).loss.shape == ()
    with pytest.raises(TypeCheckError, match="targets"):
        losses.answer_loss(logits, targets[:, :2], mask)
    with pytest.raises(TypeCheckError, match="targets"):
        losses.answer_loss(logits, jnp.float32(targets), mask)


def test_every_annotated_function_is_checked():
    """By beartype alone where no array is annotated; by jaxtyping where one may be."""
    decorate = jaxtyping.jaxtyped(typechecker=beartype)

    @decorate
    def named(count: int, names: Sequence[str]) -> str:
        return names[count]

    assert named(0, ["a"]) == "a"
    for wrong in ((0.5, ["a"]), (0, [b"a"]), (0, [3])):
        with pytest.raises(TypeCheckError):
            named(*wrong)

    def plain(x):
        return x

    assert decorate(plain) is plain
    row = Float[np.ndarray, " n"]
    for hint in (row, row | None, tuple[int, row], Callable[[row], int], "Any"):
        assert has_array(hint), hint
    for hint in (int, np.ndarray, Callable[..., int], list[str] | None, Any):
        assert not has_array(hint), hint


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="unforeseen"):
        warnings.warn("unforeseen", stacklevel=1)


def test_compiled_programs_are_kept(request):
    folder = jax.config.jax_compilation_cache_dir
    if getattr(request.config, "cache", None) is None:
        assert folder is None
    else:
        assert Path(folder).is_dir()


def test_golden_dir(golden_dir, repo_dir):
    assert golden_dir.is_dir()
    assert (repo_dir / "pyproject.toml").is_file()


# Subclasses of another project's classes; tests/test_eval_adapters.py has stand-ins.
HARNESSES = {
    "vtscale_jax.eval.adapters.lmms_eval": "lmms_eval",
    "vtscale_jax.eval.adapters.vlmevalkit": "vlmeval",
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_cleanly(module):
    harness = HARNESSES.get(module)
    if harness is not None and importlib.util.find_spec(harness) is None:
        pytest.skip(f"{harness} is not installed")
    # Without a warning, and with every annotation one that can be checked.
    assert importlib.import_module(module).__doc__
