"""The sources by the names that the command line knows."""

from pathlib import Path

from vtscale_jax.data.sources import NAMES
from vtscale_jax.data.sources.source import Source


def source_by_name(name: str, path: Path, kind: str | None = None) -> Source:
    """The source `name` for the file `path`; `kind` is that of a file of SVIT, which
    else its name says."""
    if name == "svit":
        from vtscale_jax.data.sources.svit import kind_of, svit

        return svit(kind_of(path, kind))
    if name == "vlmeval-tsv":
        from vtscale_jax.data.sources.vlmeval_tsv import vlmeval_tsv

        return vlmeval_tsv(path)
    if name == "llava":
        from vtscale_jax.data.sources.llava import LLAVA

        return LLAVA
    if name == "docdownstream":
        from vtscale_jax.data.sources.docdownstream import DOCDOWNSTREAM

        return DOCDOWNSTREAM
    if name == "jsonl":
        from vtscale_jax.data.sources.jsonl import JSONL

        return JSONL
    raise ValueError(f"SOURCE is {name!r}, expected one of {', '.join(NAMES)}")
