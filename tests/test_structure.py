"""The layout of the package, read from its syntax trees.

Each rule is a function of a module's name and source that lists what breaks it. The
same functions run over the package and over made-up sources that break them, so that no
rule can pass by looking at nothing.

A module's name is dotted and below the package: `vision`, `eval.scorers`,
`eval.__main__`, `eval.__init__`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vtscale_jax"

# The spine in reading order: imports point upward, to what stands before.
HOST = (
    *(
        "types",
        "loss_watch",
        "metrics",
        "records",
        "run_folder",
        "templates",
        "tokens",
        "images",
        "views",
        "fast_views",
    ),
    *("packing", "collate", "buckets", "encoding", "encoders", "loader", "skips"),
)
TOWERS = ("vision", "text_tower", "fusion", "llm")
DEVICE = (
    *("rotary", "attention", "fused_attention", "layers", *TOWERS),
    *("generate", "vlm", "losses"),
    *("stages", "optim", "step", "settings"),
)
ENTRY = (
    *("compilation", "assemble", "phases", "program", "step_cost", "remat", "prepare"),
    *("dry_run", "evaluate"),
    *("next_commands", "pace", "train"),
    *("stream", "conversation", "trained", "ask", "heldout", "baseline"),
)
# These import nothing of ours.
BARE = ("paths", "config_files", "devices", "machine", "pools")
SPINE = (HOST[0], *BARE, *HOST[1:], *DEVICE, *ENTRY)
RIBS = (
    *("embedded", "weights", "report", "parallel", "eval"),
    *("data", "divergence", "scaling", "cost", "sweep"),
)
# Files of ribs that a data worker imports: it must start in no time and own no device.
HOST_RIB_FILES = (
    *("embedded.__init__", "embedded.digit_pages", "embedded.questions"),
    *("embedded.text_pages", "embedded.vocabulary"),
)
# Files of the rib `report` that every rib may import: the look of figures and pages.
DRAW_FOR_ALL = ("report.drawing", "report.pages")
ON_DEVICE = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
ON_HOST = {"tokenizers", "transformers", "PIL", "grain"}
OTHER_FRAMEWORKS = {"torch", "torchvision", "tensorflow", "tensorflow_datasets"}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}
DUMPING_GROUNDS = {"utils", "util", "common", "helpers", "helper", "misc"}
MAX_LINES = 400
MAX_TEST_LINES = 600


class Import(NamedTuple):
    """`parts` is the dotted target; `in_function` whether it waits for a call."""

    parts: tuple[str, ...]
    line: int
    in_function: bool

    @property
    def ours(self) -> str | None:
        """Spine module or rib that is imported; None when it is neither."""
        known = self.parts[0] == PACKAGE and len(self.parts) > 1
        return self.parts[1] if known and self.parts[1] in SPINE + RIBS else None


def imports(module: str, source: str) -> Iterator[Import]:
    """Every import, also inside functions and conditions, with relative ones resolved.

    `from a import b` counts as an import of `a.b`, since b may be a module.
    """
    package = (PACKAGE, *module.split("."))[:-1]

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(tuple(alias.name.split(".")), node.lineno, in_function)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield Import((*base, *stem, alias.name), node.lineno, in_function)
        inner = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function or inner)

    return visit(ast.parse(source), False)


def top(module: str) -> str:
    return module.split(".")[0]


def has_a_place(module: str, source: str) -> list[str]:
    """Every file of the package root is on the spine, every folder is a known rib."""
    is_file = "." not in module
    if module == "__init__" or top(module) in (SPINE if is_file else RIBS):
        return []
    table = "SPINE" if is_file else "RIBS"
    return [f"{module}: unknown; say its place in {table} of tests/test_structure.py"]


def imports_point_upward(module: str, source: str) -> list[str]:
    """A spine module imports only what stands before it; the root imports nothing."""
    if module != "__init__" and module not in SPINE:
        return []
    place = -1 if module == "__init__" else SPINE.index(module)
    return [
        f"{module}:{found.line}: imports {found.ours}, which stands below it"
        for found in imports(module, source)
        if found.ours in SPINE and SPINE.index(found.ours) >= place
    ]


def towers_are_apart(module: str, source: str) -> list[str]:
    """vision, text_tower, fusion and llm are joined by vlm only."""
    return [
        f"{module}:{found.line}: imports {found.ours}; only vlm joins the towers"
        for found in imports(module, source)
        if module in TOWERS and found.ours in TOWERS and found.ours != module
    ]


def host_has_no_device(module: str, source: str) -> list[str]:
    """Host files import neither JAX nor any file of ours that does."""

    def is_host(found: Import) -> bool:
        if found.ours in RIBS:
            return ".".join(found.parts[1:3]) in HOST_RIB_FILES
        return found.ours in HOST if found.ours else found.parts[0] not in ON_DEVICE

    return [
        f"{module}:{found.line}: a host file imports {'.'.join(found.parts)}"
        for found in imports(module, source)
        if module in HOST + HOST_RIB_FILES and not is_host(found)
    ]


def device_has_no_host(module: str, source: str) -> list[str]:
    """Device files know tokens and images only as `types.Batch`."""
    return [
        f"{module}:{found.line}: a device file imports {'.'.join(found.parts)}"
        for found in imports(module, source)
        if module in DEVICE
        and (found.parts[0] in ON_HOST or found.ours in set(HOST) - {"types"})
    ]


def spine_has_no_ribs(module: str, source: str) -> list[str]:
    """Only the ENTRY files of the spine join ribs."""
    return [
        f"{module}:{found.line}: the spine imports the rib {found.ours}"
        for found in imports(module, source)
        if module in {*SPINE, "__init__"} - set(ENTRY) and found.ours in RIBS
    ]


def ribs_are_apart(module: str, source: str) -> list[str]:
    """A rib does not import another, except from its `__main__`, and except
    `report.drawing` and `report.pages`, which draw for all. `sweep` joins any."""
    if top(module) not in set(RIBS) - {"sweep"} or module.endswith(".__main__"):
        return []
    return [
        f"{module}:{found.line}: imports the rib {found.ours}"
        for found in imports(module, source)
        if found.ours in RIBS
        and found.ours != top(module)
        and ".".join(found.parts[1:3]) not in DRAW_FOR_ALL
    ]


def configs_are_apart(module: str, source: str) -> list[str]:
    """The package receives its configuration, and never imports configs/."""
    return [
        f"{module}:{found.line}: imports configs"
        for found in imports(module, source)
        if found.parts[0] in {"configs", "tests", "benchmarks"}
    ]


def is_short(module: str, source: str) -> list[str]:
    """At most 400 lines, so that a file holds one idea."""
    length = len(source.splitlines())
    return [f"{module}: {length} lines of {MAX_LINES}"] if length > MAX_LINES else []


def is_named_for_what_it_does(module: str, source: str) -> list[str]:
    """No module, folder or function named utils, common, helpers or misc."""
    parts = {part for name in module.split(".") for part in name.split("_")}
    functions = {
        node.name.strip("_")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    bad = sorted((parts | {name.lower() for name in functions}) & DUMPING_GROUNDS)
    return [f"{module}: named {name}; name it for what it does" for name in bad]


def never_runs_data(module: str, source: str) -> list[str]:
    """No pickle, no eval or exec, no array file that may hold pickles."""
    found = [
        (i.line, f"imports {i.parts[0]}")
        for i in imports(module, source)
        if i.parts[0] in PICKLES
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name in {"eval", "exec", "__import__"}:
            found.append((node.lineno, f"calls {name}"))
        options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        # A variable is no promise, so only a literal False is.
        if options.get("allow_pickle", False) is not False:
            found.append((node.lineno, "allows pickle"))
        if ast.unparse(node.func) == "torch.load" and not options.get("weights_only"):
            found.append((node.lineno, "torch.load without weights_only=True"))
    return [f"{module}:{line}: {what}" for line, what in found]


def never_hides_errors(module: str, source: str) -> list[str]:
    """No `except:`, and no handler of any exception that only passes over it."""
    return [
        f"{module}:{node.lineno}: {ast.unparse(node).splitlines()[0]} hides errors"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (
                ast.unparse(node.type) in {"Exception", "BaseException"}
                and all(isinstance(n, ast.Pass | ast.Continue) for n in node.body)
            )
        )
    ]


def other_frameworks_wait(module: str, source: str) -> list[str]:
    """torch and tensorflow are imported in functions of weights/ only, and
    tensorflow_datasets, which does without tensorflow, in functions of data/."""
    homes = {"tensorflow_datasets": "data"}
    return [
        f"{module}:{found.line}: imports {found.parts[0]}"
        for found in imports(module, source)
        if found.parts[0] in OTHER_FRAMEWORKS
        and not (
            found.in_function and top(module) == homes.get(found.parts[0], "weights")
        )
    ]


RULES = {
    rule.__name__: rule
    for rule in (
        has_a_place,
        imports_point_upward,
        towers_are_apart,
        host_has_no_device,
        device_has_no_host,
        spine_has_no_ribs,
        ribs_are_apart,
        configs_are_apart,
        is_short,
        is_named_for_what_it_does,
        never_runs_data,
        never_hides_errors,
        other_frameworks_wait,
    )
}

# (rule, module, source): each must be refused by its rule.
BREAKS = [
    ("has_a_place", "runner", ""),
    ("has_a_place", "plots.curves", ""),
    ("imports_point_upward", "layers", "from vtscale_jax.vlm import VLM"),
    ("imports_point_upward", "layers", "from vtscale_jax import vlm"),
    ("imports_point_upward", "layers", "from . import types, vlm"),
    ("imports_point_upward", "layers", "from .vlm import VLM"),
    ("imports_point_upward", "step", "import vtscale_jax.train as t"),
    ("imports_point_upward", "step", "def f():\n    from vtscale_jax import train"),
    ("imports_point_upward", "tokens", "if TYPE_CHECKING:\n    from . import loader"),
    ("imports_point_upward", "__init__", "from vtscale_jax.types import Batch"),
    ("towers_are_apart", "fusion", "from vtscale_jax.vision import Tower"),
    ("towers_are_apart", "llm", "from vtscale_jax import fusion"),
    ("host_has_no_device", "views", "import jax.numpy as jnp"),
    ("host_has_no_device", "tokens", "def f():\n    from flax import linen"),
    ("host_has_no_device", "loader", "from vtscale_jax import paths"),
    ("host_has_no_device", "embedded.digit_pages", "import jax"),
    ("host_has_no_device", "embedded.digit_pages", "from vtscale_jax import step"),
    ("host_has_no_device", "embedded.digit_pages", "from . import make_weights"),
    ("device_has_no_host", "vision", "from PIL import Image"),
    ("device_has_no_host", "step", "from vtscale_jax.loader import batches"),
    ("device_has_no_host", "llm", "from transformers import AutoTokenizer"),
    ("device_has_no_host", "stages", "from . import tokens"),
    ("spine_has_no_ribs", "stages", "from vtscale_jax.weights import names"),
    ("spine_has_no_ribs", "loader", "from .embedded.digit_pages import page"),
    ("ribs_are_apart", "eval.scorers", "from vtscale_jax.report import plots"),
    ("ribs_are_apart", "eval.scorers", "from ..report import plots"),
    ("ribs_are_apart", "eval.__init__", "from vtscale_jax import report"),
    ("ribs_are_apart", "scaling.figures.fits", "from vtscale_jax.report import page"),
    ("ribs_are_apart", "scaling.fits", "from vtscale_jax.divergence import fits"),
    ("ribs_are_apart", "scaling.report", "from vtscale_jax.sweep import parts"),
    ("configs_are_apart", "train", "from configs.base import get_config"),
    ("configs_are_apart", "sweep.parts", "def f():\n    import configs.m1"),
    ("is_short", "vision", "x = 1\n" * (MAX_LINES + 1)),
    ("is_named_for_what_it_does", "eval.utils", ""),
    ("is_named_for_what_it_does", "image_utils", ""),
    ("is_named_for_what_it_does", "helpers.images", ""),
    ("is_named_for_what_it_does", "views", "def _misc(x):\n    return x"),
    ("never_runs_data", "records", "import pickle"),
    ("never_runs_data", "records", "def f(t):\n    return eval(t)"),
    ("never_runs_data", "records", "exec('x = 1')"),
    ("never_runs_data", "records", "np.load(path, allow_pickle=True)"),
    ("never_runs_data", "records", "np.load(path, allow_pickle=flag)"),
    ("never_runs_data", "weights.torch_files", "torch.load(path)"),
    ("never_hides_errors", "views", "try:\n    f()\nexcept:\n    raise"),
    ("never_hides_errors", "views", "try:\n    f()\nexcept Exception:\n    pass"),
    ("other_frameworks_wait", "llm", "def f():\n    import torch"),
    ("other_frameworks_wait", "weights.names", "import torch"),
    ("other_frameworks_wait", "weights.names", "from tensorflow import io"),
    ("other_frameworks_wait", "data.x", "import tensorflow_datasets as tfds"),
    ("other_frameworks_wait", "data.x", "def f():\n    import tensorflow"),
    ("other_frameworks_wait", "eval.x", "def f():\n    import tensorflow_datasets"),
]

# (rule, module, source): each must pass, or the rule refuses what the design allows.
KEEPS = [
    ("has_a_place", "eval.scorers", ""),
    ("imports_point_upward", "vlm", "from vtscale_jax import fusion, llm, vision"),
    ("imports_point_upward", "ask", "from vtscale_jax.train import restore"),
    ("imports_point_upward", "eval.scorers", "from vtscale_jax.train import restore"),
    ("towers_are_apart", "vlm", "from vtscale_jax import fusion, vision"),
    ("host_has_no_device", "loader", "import grain\nfrom . import tokens, views"),
    ("host_has_no_device", "embedded.digit_pages", "from .vocabulary import WORDS"),
    ("host_has_no_device", "layers", "import jax"),
    ("device_has_no_host", "vision", "import jax\nfrom vtscale_jax.types import Batch"),
    ("device_has_no_host", "train", "from vtscale_jax import loader"),
    ("spine_has_no_ribs", "train", "from vtscale_jax.embedded import digit_pages"),
    ("ribs_are_apart", "eval.__main__", "from vtscale_jax.report import plots"),
    ("ribs_are_apart", "sweep.cost", "from vtscale_jax.cost import flops"),
    ("ribs_are_apart", "eval.scorers", "from . import tasks"),
    (
        "ribs_are_apart",
        "scaling.report",
        "from vtscale_jax.report.pages import flatten",
    ),
    ("ribs_are_apart", "divergence.panels", "from vtscale_jax.report import drawing"),
    ("ribs_are_apart", "weights.names", "from vtscale_jax import paths, stages"),
    ("is_short", "vision", "x = 1\n" * MAX_LINES),
    ("is_named_for_what_it_does", "views", "def common_prefix(a):\n    return a"),
    ("never_runs_data", "step", "jax.eval_shape(f)\nnp.load(p, allow_pickle=False)"),
    ("never_hides_errors", "views", "try:\n    f()\nexcept KeyError:\n    raise"),
    ("other_frameworks_wait", "weights.names", "def f():\n    import torch"),
]


def package_sources() -> dict[str, str]:
    """Source of every module of the package by dotted name."""
    folder = ROOT / PACKAGE
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text()
        for path in sorted(folder.rglob("*.py"))
    }


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps(rule):
    sources = package_sources()
    assert {"__init__", "types", "paths"} <= set(sources)
    broken = [line for name in sources for line in RULES[rule](name, sources[name])]
    assert not broken, "\n".join([RULES[rule].__doc__ or rule, *broken])


@pytest.mark.parametrize("rule, module, source", BREAKS)
def test_rule_bites(rule, module, source):
    assert RULES[rule](module, source)


@pytest.mark.parametrize("rule, module, source", KEEPS)
def test_rule_allows(rule, module, source):
    assert not RULES[rule](module, source)


def test_every_rule_is_shown_to_bite():
    assert {rule for rule, _, _ in BREAKS} == set(RULES)


def test_host_files_start_without_jax():
    # grain brings JAX with it when there is one, so the loader is left out.
    names = sorted({*HOST, *HOST_RIB_FILES} - {"loader"})
    files = {name: Path(ROOT, PACKAGE, *name.split(".")) for name in names}
    present = [n for n, path in files.items() if path.with_suffix(".py").exists()]
    assert "types" in present
    code = f"import sys, {', '.join(f'{PACKAGE}.{name}' for name in present)}\n"
    code += f"print(sorted({ON_DEVICE!r} & set(sys.modules)))"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert child.stdout.strip() == "[]", child.stdout + child.stderr


def test_tests_are_short():
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in (ROOT / "tests").rglob("*.py")
    }
    assert Path(__file__).name in lengths
    too_long = {name: n for name, n in lengths.items() if n > MAX_TEST_LINES}
    assert not too_long, f"test files over {MAX_TEST_LINES} lines: {too_long}"
