"""`python -m vtscale_jax.cost audit`: could a table of times have been?"""

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """\
example:
  $ python -m vtscale_jax.cost audit --device a100-40gb
  …
  3 of 36 pairs are impossible on NVIDIA A100-SXM4-40GB: 256 → 768: 512 tokens more in
  2.5 ms, which take 23.1 ms at least (…: 2,653 of 312 TFLOP/s); …
  $ python -m vtscale_jax.cost audit table.csv --device h100 \\
        --config configs/m256.py:paper
Columns: n_l (vision tokens), ttft_s (seconds); others are not read.
"""
CONFIG = "configs/m256.py:paper"
QUESTION_TOKENS = 64
NOISE = 0.01
PUBLISHED_DEVICE = "a100-40gb"


def add(commands: Any) -> None:
    """Adds the command to the others."""
    parser = commands.add_parser(
        "audit",
        help="anyone's table of times to the first token, against arithmetic",
        description="Compares every time, and every pair of times, with the least that "
        "the work takes on the device (roofline), and lists what is impossible. "
        "Without FILE: the paper's Table 6.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.csv", help="columns n_l and ttft_s"
    )
    parser.add_argument(
        "--device",
        default=PUBLISHED_DEVICE,
        help="a100-40gb, a100-80gb, h100, h200, v5e, … (default: the paper's, "
        "%(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE[:WORDS]",
        default=CONFIG,
        help="whose model was timed (default: %(default)s)",
    )
    parser.add_argument(
        "--question_tokens",
        type=int,
        metavar="T",
        default=QUESTION_TOKENS,
        help="tokens of the prompt beside the vision tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        metavar="WxH",
        default="640x480",
        help="size of the image in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=NOISE,
        help="share of the longer time that a pair may fall short by (default: "
        "%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="also audit.json, rows.csv, pairs.csv"
    )


def run(options: argparse.Namespace, published: Path) -> None:
    """Runs the command; `published` is the paper's Table 6. Findings are no errors."""
    import json

    from vtscale_jax.cost import audit, verdicts
    from vtscale_jax.cost.commands.values import image_size, read_config

    config = read_config(options.config, options.overrides)
    table = audit.read_file(options.file or published)
    found, slope = audited(
        table,
        config,
        options.device,
        question_tokens=options.question_tokens,
        image=image_size(options.image),
        noise=options.noise,
    )
    content = verdicts.as_json(found) | {
        "file": str(options.file or "the paper's Table 6"),
        "config": options.config,
        "question_tokens": options.question_tokens,
        "image": options.image,
        "noise": options.noise,
        "ignored_columns": list(table.ignored),
        "left_out": list(table.left_out),
    }
    slope_told = verdicts.slope_sentence(slope)
    if options.file is None:
        content["table7"] = {**slope, "verdict": slope_told}
    if options.out is not None:
        _write(options.out, content, found)
    if options.json:
        print(json.dumps(content, ensure_ascii=False))
        return
    pairs = verdicts.pair_cells(found.pairs)
    lines = verdicts.aligned([verdicts.ROW_HEADS, *verdicts.row_cells(found.rows)])
    lines += ["", *verdicts.aligned([verdicts.PAIR_HEADS, *pairs]), ""]
    lines += [content["verdict"], verdicts.ASSUMPTION]
    if options.file is None:
        lines.append(slope_told)
    ignored = ", ".join(table.ignored)
    lines += [f"columns not read: {ignored}"] if ignored else []
    lines += [f"left out: {each}" for each in table.left_out]
    lines.append(
        f"({found.peak.describe()}; {options.config}, {options.question_tokens} tokens "
        f"beside the vision tokens, image {options.image}, noise {options.noise:g})"
    )
    if options.out is not None:
        lines.append(f"Results: {options.out} (audit.json, rows.csv, pairs.csv)")
    print("\n".join(lines))


def audited(
    table: Any,
    config: Any,
    device: str,
    *,
    question_tokens: int,
    image: tuple[int, int],
    noise: float,
) -> tuple[Any, dict[str, float]]:
    """The audit of a table on a device by its short name, and the slope of the paper's
    Table 7 with this model. ValueError for an unknown device or impossible sizes."""
    from vtscale_jax import settings
    from vtscale_jax.cost import audit
    from vtscale_jax.cost.peak import stated
    from vtscale_jax.devices import GPUS, TPUS
    from vtscale_jax.views import view_grid

    chips = {**GPUS, **TPUS}
    if device not in chips:
        raise audit.AuditError(
            f"--device is {device!r}, expected one of {', '.join(chips)}"
        )
    if question_tokens < 1:
        raise audit.AuditError(
            f"--question_tokens is {question_tokens}, expected 1 or more"
        )
    model = settings.model_config(config, audit.DTYPE)
    height, width = image
    grid = view_grid(
        width, height, config.data.max_local_views, model.vision.image_size
    )
    setting = audit.Setting(image, grid, question_tokens)
    found = audit.audit(table.rows, model, stated(chips[device]), setting, noise=noise)
    return found, audit.published_slope(model)


def _write(folder: Path, content: dict[str, Any], found: Any) -> None:
    from vtscale_jax.cost import verdicts
    from vtscale_jax.run_folder import RunFolder, write_whole

    RunFolder(folder).write("audit.json", content)
    tables = {
        "rows.csv": (verdicts.ROW_HEADS, verdicts.row_cells(found.rows)),
        "pairs.csv": (verdicts.PAIR_HEADS, verdicts.pair_cells(found.pairs)),
    }
    for name, (heads, cells) in tables.items():
        text = verdicts.as_csv(heads, [[c.replace(",", "") for c in r] for r in cells])
        write_whole(folder / name, text.encode())
