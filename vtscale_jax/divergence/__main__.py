"""Command line of `divergence`: measure hidden states, check kernels, draw figures.

python -m vtscale_jax.divergence measure --llm smollm2-135m
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.divergence.options import MAX_LENGTH, MAX_PREFIX, parse

PAGE_PAIRS = 512  # of the embedded language model
PAGES_SEED = 1000  # its training pages were drawn with 0
IMAGE_PAIRS = 512  # of a trained run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    options = parse(arguments)
    commands = {
        "measure": _measure,
        "kernel": _kernel,
        "figures": _figures,
        "theory": _theory,
    }
    try:
        commands[options.command](options)
    except ValueError as error:
        if options.traceback:
            raise
        print(f"error: {error}\n(--traceback shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


# Each command loads what it needs: figures need no JAX, help needs nothing.
def _kernel(options: argparse.Namespace) -> None:
    from vtscale_jax.divergence.check_arrays import curves_of_file, table
    from vtscale_jax.divergence.result import plain

    found = curves_of_file(options.npz, options.reduction, options.kernel)
    print(json.dumps(plain(found)) if options.json else table(found))


def _figures(options: argparse.Namespace) -> None:
    from vtscale_jax.divergence.overview import write_overview
    from vtscale_jax.divergence.result import read_result

    results = [read_result(path) for path in options.results]
    page = write_overview(results, options.out, beta=options.beta)
    print(f"Overview: {page}\nFigures:  {options.out / 'figures'} (PNG and SVG)")


def _theory(options: argparse.Namespace) -> None:
    from vtscale_jax.divergence.findings import findings
    from vtscale_jax.divergence.result import plain, read_result
    from vtscale_jax.divergence.scores import describe, fitted, of_n, table

    result = read_result(options.result)
    found = fitted(result, options.scores, options.metric, options.inputs)
    found["of_n"] = of_n(result, options.beta)
    if options.json:
        print(json.dumps(plain(found)))
        return
    print("\n".join(finding.text for finding in findings(result)))
    print(table(found["of_n"], options.beta))
    if "scores" in found:
        print(describe(found["scores"]))


def _measure(options: argparse.Namespace) -> None:
    import jax

    from vtscale_jax.divergence.findings import findings
    from vtscale_jax.divergence.result import read_result
    from vtscale_jax.divergence.run import finished, run_measurement
    from vtscale_jax.parallel import host
    from vtscale_jax.parallel.hosts.processes import start
    from vtscale_jax.run_folder import code_version, versions

    host.take_gpu_memory()
    about = {"options": str(sorted(vars(options).items()))}
    about |= {name: str(v) for name, v in (code_version() | versions()).items()}
    with start(about=about) as processes:
        say = print if processes.is_first else lambda *_: None
        if jax.default_backend() == "cpu":
            host.keep_freed_memory()
        open_jobs = _vision_jobs if options.run else _text_jobs
        paths = []
        for job, open_source in open_jobs(options):
            paths.append(options.out / f"{job.name}.json")
            if finished(paths[-1], job):
                say(f"{paths[-1]} is there already: not measured again")
                continue
            source = open_source()
            say(f"{job.name}: {source.num_rows:,} rows of {job.pairs}")
            run_measurement(source, job, options.out, processes, say)
        if processes.is_first:
            for path in paths:
                print(f"\n{path.stem}")
                for finding in findings(read_result(path)):
                    print(f"  {finding.text}")
                print(f"Result: {path}")
            listed = " ".join(map(str, paths))
            print(f"Next: python -m vtscale_jax.divergence figures {listed}")


Jobs = Iterator[tuple[Any, Callable[[], Any]]]


def _job(options: argparse.Namespace, name: str, layer: str, **more: Any) -> Any:
    """A job with what the options say of every kind."""
    from vtscale_jax.divergence import null
    from vtscale_jax.divergence.measure import How
    from vtscale_jax.divergence.run import Job
    from vtscale_jax.divergence.states import FINAL

    null.check(options.reduction, options.null)
    return Job(
        name=name if layer == FINAL else f"{name}-layer{layer}",
        layer=layer,
        how=How(options.reduction, options.kernel, options.null, options.seed),
        replicates=options.replicates,
        seed=options.seed,
        max_bad_share=options.max_bad_share,
        **more,
    )


def _mesh(sharded: bool) -> Any:
    """All devices of this host: the batch is shared out over them, and the weights too
    where that is asked for. Other processes have a mesh of their own."""
    import jax

    from vtscale_jax.parallel.mesh import make_mesh

    sizes = {"data": 1, "fsdp": -1} if sharded else {"data": -1, "fsdp": 1}
    return make_mesh({**sizes, "tensor": 1}, jax.local_devices())


def _is_sharded(asked: str, num_bytes: int) -> bool:
    """Whether weights of so many bytes are shared out over the devices of this host."""
    import jax

    device, *others = jax.local_devices()
    if asked != "auto" or not others or device.platform == "cpu":
        return asked == "sharded"
    return 3 * num_bytes > (device.memory_stats() or {}).get("bytes_limit", 0)


def _text_jobs(options: argparse.Namespace) -> Jobs:
    """Pairs of answers on a language model, a job for each layer."""
    import jax
    import numpy as np

    from vtscale_jax.divergence.pairs.tokens import Lengths
    from vtscale_jax.divergence.states import FINAL, through_layer
    from vtscale_jax.divergence.text_branches import TextBranches
    from vtscale_jax.parallel import rules
    from vtscale_jax.weights import embedded_llm
    from vtscale_jax.weights.files.fingerprint import tensors_sha256
    from vtscale_jax.weights.language_models import load_language_model, reading_sha256
    from vtscale_jax.weights.pretrained import open_pretrained

    name = options.llm or embedded_llm.NAME
    embedded = name == embedded_llm.NAME
    dtype = options.dtype or "auto"
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if embedded:
        dtype = "float32"
        reading, weights = embedded_llm.sha256s()
    else:
        # Hashes first: of a measurement that is finished nothing else is loaded.
        found = open_pretrained("--llm", name)
        weights = tensors_sha256(found.tensors)
        reading = reading_sha256(found.config, found.tokenizer())
    pairs = _text_pairs(options, embedded)
    max_length = options.max_length or MAX_LENGTH
    max_prefix = options.max_prefix or MAX_PREFIX
    inputs = {
        "weights_sha256": weights,
        "reading_sha256": reading,
        "pairs_sha256": pairs.sha256,
        "num_pairs": options.num_pairs,
        "prompt_form": pairs.form,
        "max_prefix": max_prefix,
        "dtype": dtype,
        "batch_size": options.batch_size,
    }

    @functools.cache
    def load() -> tuple[Any, Any]:
        """The model and the mesh that it lies on."""
        mesh = _mesh(False)

        def lay_out(shapes: dict) -> dict:
            nonlocal mesh
            leaves = jax.tree.leaves(shapes)
            size = sum(leaf.size for leaf in leaves) * np.dtype(dtype).itemsize
            sharded = _is_sharded(options.weights or "auto", size)
            mesh = _mesh(sharded)
            layout = "sharded" if sharded else "replicated"
            return rules.frozen_shardings({"llm": shapes}, mesh, layout)["llm"]

        if embedded:
            model = embedded_llm.load_embedded_llm()
            params = jax.device_put(model.params, lay_out(model.params))
            model = model._replace(params=params)
        else:
            model = load_language_model("--llm", name, dtype=dtype, lay_out=lay_out)
        if mesh.size > 1 and jax.default_backend() == "cpu":
            # Loops and collectives do not go together there: see `program`.
            blocks = model.config.blocks
            blocks = dataclasses.replace(blocks, unroll=blocks.num_layers)
            config = dataclasses.replace(model.config, blocks=blocks)
            model = model._replace(config=config)
        return model, mesh

    def open_source(layer: str) -> TextBranches:
        model, mesh = load()
        params, config = through_layer(model.params, model.config, layer)
        return TextBranches(
            pairs.read,
            pairs.writer(model.tokenizer),
            Lengths(max_length, max_prefix, model.limit),
            where=pairs.name,
            word=pairs.word,
            params=params,
            config=config,
            final=layer == FINAL,
            mesh=mesh,
            batch_size=options.batch_size,
            most=options.num_pairs,
            max_bad_share=options.max_bad_share,
        )

    stem = options.name or Path(name.rstrip("/")).name.removesuffix(".gguf")
    for layer in options.layer or [FINAL]:
        job = _job(
            options,
            stem,
            layer,
            kind="text",
            num_positions=max_length,
            inputs=inputs,
            about={"llm": name},
            pairs=pairs.name,
            word=pairs.word,
        )
        yield job, functools.partial(open_source, layer)


class _TextPairs(NamedTuple):
    """What reads the rows, their name, what one is called, a hash of all, and what
    makes ids of them for a tokenizer."""

    read: Callable[[], Iterator[Any]]
    name: str
    word: str
    sha256: str
    form: str
    writer: Callable[[Any], Any]


def _text_pairs(options: argparse.Namespace, embedded: bool) -> _TextPairs:
    """The pairs that the options ask for."""
    from vtscale_jax.divergence.pairs.answers import SHIPPED
    from vtscale_jax.divergence.pairs.rows import file_sha256, read_pairs, row_word
    from vtscale_jax.divergence.pairs.writers import writer_for

    if embedded and options.pairs is None and options.prompt_form is None:
        return _written_pages(options)
    path = options.pairs or SHIPPED
    read_pairs(path)  # complains of a file that is none
    form = options.prompt_form or ("plain" if embedded else "chat")
    return _TextPairs(
        functools.partial(read_pairs, path),
        "the shipped pairs" if options.pairs is None else str(path),
        row_word(path),
        file_sha256(path),
        form,
        functools.partial(writer_for, prompt_form=form),
    )


def _written_pages(options: argparse.Namespace) -> _TextPairs:
    """Digit Pages in words, from which the embedded model has learnt."""
    from vtscale_jax.divergence.pairs.written_pages import PageWriter, page_pairs
    from vtscale_jax.embedded.text_pages import TextPages

    # Written out in full, as cells in order or as facts; never as a hint.
    shares = (0.5, 0.5, 0.0)
    pages = TextPages(2**31, PAGES_SEED + options.seed, style_shares=shares)
    number = options.num_pairs or PAGE_PAIRS
    # Kept: many pages are drawn for one that is long enough.
    pairs = list(page_pairs(lambda i: pages[i].page, number))
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.chosen}\n{pair.rejected}\n".encode())
    name = "pairs of written-out Digit Pages"
    read = functools.partial(iter, pairs)
    return _TextPairs(read, name, "pair", digest.hexdigest(), "page", PageWriter)


def _vision_jobs(options: argparse.Namespace) -> Jobs:
    """Pairs of images on a trained run, a job for each layer."""
    from vtscale_jax.divergence.pairs.images import (
        by_twos,
        images_sha256,
        read_image_pairs,
    )
    from vtscale_jax.divergence.pairs.rows import file_sha256
    from vtscale_jax.divergence.pairs.schemas import PairsError
    from vtscale_jax.divergence.states import FINAL
    from vtscale_jax.divergence.vision_branches import VisionBranches
    from vtscale_jax.settings import fingerprint
    from vtscale_jax.trained import open_trained
    from vtscale_jax.weights.starting import RUN_WEIGHTS

    run = open_trained(options.run, num_queries=options.num_queries)
    if options.pairs is not None:
        rows = list(read_image_pairs(options.pairs))[: options.num_pairs]
        pairs = str(options.pairs)
    elif run.config.data.name == "digit_pages":
        number = options.num_pairs or IMAGE_PAIRS
        rows, pairs = by_twos(_pages(run.config, 2 * number)), "held-out Digit Pages"
    else:
        raise PairsError(
            f"--run {options.run} was not trained on Digit Pages, so that no pairs of "
            "images come with it: give --pairs FILE, a JSONL of image_a, image_b and "
            "question"
        )
    M = run.layout.num_queries
    inputs = {
        "weights_sha256": file_sha256(options.run / RUN_WEIGHTS),
        "config": fingerprint(run.config),
        "pairs_sha256": images_sha256(rows),
        "num_queries": M,
        "dtype": run.model.llm.blocks.dtype,
        "batch_size": options.batch_size,
    }
    stem = options.name or options.run.resolve().name
    if options.name is None and options.num_queries is not None:
        stem = f"{stem}-first{M}"
    for layer in options.layer or [FINAL]:
        job = _job(
            options,
            stem,
            layer,
            kind="vision",
            num_positions=M,
            inputs=inputs,
            about={"run": str(options.run)},
            pairs=pairs,
        )
        yield (
            job,
            functools.partial(
                VisionBranches,
                run,
                rows,
                layer=layer,
                mesh=_mesh(False),
                batch_size=options.batch_size,
                where=pairs,
                max_bad_share=options.max_bad_share,
            ),
        )


def _pages(config: Any, number: int) -> list[Any]:
    """So many different held-out pages, with one question each, of all families."""
    from vtscale_jax.assemble import HELDOUT_SEEDS
    from vtscale_jax.embedded.digit_pages import DigitPages, PageConfig

    pages = DigitPages(
        "heldout",
        num_pages=number,
        seed=HELDOUT_SEEDS["final"],
        config=PageConfig(**config.data.page),
        families=tuple(config.data.families),
        questions_per_page=1,
    )
    return [pages[i] for i in range(number)]


if __name__ == "__main__":
    sys.exit(main())
