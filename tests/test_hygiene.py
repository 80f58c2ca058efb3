"""What a reader may count on: docstrings, annotations, owned notes.

As in test_structure.py, each rule runs over the package and over sources that break it.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
# Called by the framework and documented by it: flax fills `setup`.
FRAMEWORK_METHODS = {"setup"}


def public(tree: ast.Module) -> Iterator[tuple[str, FUNCTION | ast.ClassDef]]:
    """Public functions and classes of a module, and methods of public classes.

    A class's `__init__` and `__call__` are public: they are how it is used.
    """

    def visit(body: list[ast.stmt], prefix: str) -> Iterator:
        for node in body:
            if isinstance(node, ast.If | ast.Try):
                yield from visit(node.body + node.orelse, prefix)
            if not isinstance(node, FUNCTION | ast.ClassDef):
                continue
            if node.name.startswith("_") and node.name not in {"__init__", "__call__"}:
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{prefix}{node.name}.")

    return visit(tree.body, "")


def says_what_it_is(source: str) -> list[str]:
    """Every module, public class and public function has a docstring."""
    tree = ast.parse(source)
    bare = [] if ast.get_docstring(tree) or not tree.body else ["module"]
    for name, node in public(tree):
        short = name.split(".")[-1]
        # The class says what its constructor and its call do.
        exempt = short.startswith("__") or short in FRAMEWORK_METHODS
        if not exempt and not ast.get_docstring(node):
            bare.append(f"{node.lineno}: {name}")
    return bare


def says_what_it_takes(source: str) -> list[str]:
    """Every parameter of a public function, and its result, is annotated."""
    bare = []
    for name, node in public(ast.parse(source)):
        if not isinstance(node, FUNCTION):
            continue
        a = node.args
        parameters = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        static = any("staticmethod" in ast.unparse(d) for d in node.decorator_list)
        if "." in name and not static:
            parameters = parameters[1:]  # self or cls
        bare += [
            f"{node.lineno}: {name}({p.arg})"
            for p in parameters
            if p is not None and p.annotation is None
        ]
        if node.returns is None and not name.endswith(("__init__", "setup")):
            bare.append(f"{node.lineno}: {name} -> ?")
    return bare


def says_who_will_do_it(source: str) -> list[str]:
    """A note of work left to do names its owner: `# TODO(ann): why`."""
    return [
        f"{token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
        and re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\([\w.-]+\))", token.string)
    ]


RULES = {
    rule.__name__: rule
    for rule in (says_what_it_is, says_what_it_takes, says_who_will_do_it)
}

BREAKS = [
    ("says_what_it_is", "x = 1"),
    ("says_what_it_is", '"""M."""\ndef f(x: int) -> int:\n    return x'),
    ("says_what_it_is", '"""M."""\nclass C:\n    pass'),
    (
        "says_what_it_is",
        '"""M."""\nclass C:\n    """C."""\n    def f(self):\n        return 1',
    ),
    ("says_what_it_is", '"""M."""\nif True:\n    def f():\n        return 1'),
    ("says_what_it_takes", "def f(x) -> int:\n    return x"),
    ("says_what_it_takes", "def f(x: int):\n    return x"),
    ("says_what_it_takes", "def f(*, x) -> int:\n    return x"),
    ("says_what_it_takes", "def f(*xs) -> int:\n    return xs"),
    ("says_what_it_takes", "class C:\n    def __call__(self, x) -> int:\n        ..."),
    ("says_what_it_takes", "class C:\n    def __init__(self, x):\n        ..."),
    (
        "says_what_it_takes",
        "class C:\n    @staticmethod\n    def f(x) -> int:\n        ...",
    ),
    ("says_who_will_do_it", "x = 1  # TODO: mend"),
    ("says_who_will_do_it", "# FIXME later"),
]

KEEPS = [
    ("says_what_it_is", ""),
    ("says_what_it_is", '"""M."""\ndef _f(x):\n    return x'),
    ("says_what_it_is", '"""M."""\nclass C:\n    """C."""\n    def setup(self): ...'),
    ("says_what_it_takes", "class C:\n    def f(self, x: int) -> int:\n        ..."),
    ("says_what_it_takes", "class C:\n    def __init__(self, x: int):\n        ..."),
    ("says_what_it_takes", "def f() -> int:\n    def g(x):\n        return x"),
    ("says_who_will_do_it", "# TODO(ann): mend\nx = 'TODO'"),
]


def sources(*folders: str) -> dict[str, str]:
    """Source of every Python file of these folders by path in the repository."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


@pytest.mark.parametrize("rule", [says_what_it_is, says_what_it_takes])
def test_package_keeps(rule):
    found = sources("vtscale_jax")
    assert "vtscale_jax/types.py" in found
    broken = [f"{path}:{line}" for path in found for line in rule(found[path])]
    assert not broken, "\n".join([rule.__doc__, *broken])


def test_notes_have_owners():
    found = sources("vtscale_jax", "configs", "tests", "benchmarks")
    assert "tests/test_hygiene.py" in found
    broken = [
        f"{path}:{line}" for path in found for line in says_who_will_do_it(found[path])
    ]
    assert not broken, "\n".join([says_who_will_do_it.__doc__ or "", *broken])


@pytest.mark.parametrize("rule, source", BREAKS)
def test_rule_bites(rule, source):
    assert RULES[rule](source)


@pytest.mark.parametrize("rule, source", KEEPS)
def test_rule_allows(rule, source):
    assert not RULES[rule](source)


def test_every_rule_is_shown_to_bite():
    assert {rule for rule, _ in BREAKS} == set(RULES)
