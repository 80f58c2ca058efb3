"""What the pages of the ribs share: templates, embedded images, the sorting script.

    page = environment(Path(__file__).parent).get_template("own.html.jinja")
    page.render(title="Scaling", **sorting(), **parts)

A page's template extends `base.html.jinja`, which has the head, the policy and the
common style, and fills its blocks `style` and `content`. `tables.html.jinja` has the
macros of tables and figures. Pages need nothing beside them: images are embedded, and
the policy of the head refuses whatever would be loaded from elsewhere.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

_HERE = Path(__file__).parent
_IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}


def environment(folder: Path) -> jinja2.Environment:
    """Templates of `folder` and the shared ones; what they are given is text.

    A name that a template asks for and does not get is an error.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,  # Names, questions and reasons are data, never markup.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def sorting() -> dict[str, str]:
    """`script`, which sorts the tables of a page, and `script_hash`, by which the
    page's policy names it: no other script can run."""
    script = (_HERE / "sortable.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return {"script": script, "script_hash": base64.b64encode(digest).decode("ascii")}


def data_uri(path: Path) -> str:
    """An image file as the `src` of an embedded image.

    Raises ValueError for a file whose ending is that of no image.
    """
    kind = _IMAGE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"image {str(path)!r} ends in {path.suffix!r}, expected one of "
            f"{', '.join(_IMAGE_TYPES)}: save the sample page as PNG."
        )
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def value_text(value: Any) -> str:
    """A value as tables show it: six digits, "–" for none; lists of many by their
    length and ends.

    >>> value_text([0.25, None, True])
    '0.25, –, yes'
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, list | tuple):
        return str(value)
    if len(value) > 24:
        ends = f"{value_text(value[0])}, {value_text(value[1])}"
        return f"{len(value)} values: {ends}, … {value_text(value[-1])}"
    return ", ".join(value_text(item) for item in value)


def flatten(
    table: dict[str, Any], prefix: str = "", *, text: Callable[[Any], str] = value_text
) -> Iterator[tuple[str, str]]:
    """(dotted name, value as text) of every leaf of a nested dict, in order.

    >>> list(flatten({"a": {"b": 0.25}, "c": [1, 2, 3]}))
    [('a.b', '0.25'), ('c', '1, 2, 3')]
    >>> list(flatten({"fusion": {"width": 64}, "seed": None}, text=str))
    [('fusion.width', '64'), ('seed', 'None')]
    """
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.", text=text)
        else:
            yield f"{prefix}{name}", text(value)
