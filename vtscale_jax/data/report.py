"""What was kept and what was left out, as a page, as JSON and as lines of text."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vtscale_jax.data.next_commands import after_prepare
from vtscale_jax.report.pages import environment, flatten, sorting
from vtscale_jax.run_folder import write_whole

PAGE, COUNTS = "report.html", "report.json"
_LINES = 8  # of reasons, on the screen


class Cell(NamedTuple):
    """A cell of a table: what is shown and what is sorted by; bad ones are marked."""

    text: str
    value: str
    bad: bool = False


def write_report(
    folder: Path, manifest: Mapping[str, Any], counts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes report.json and report.html into `folder`, each whole or not at all; what
    is in the first. `counts` are those of the tallies."""
    about = {name: manifest[name] for name in ("source", "input", "images", "options")}
    report = {**about, **counts, "next": after_prepare(folder, manifest)}
    text = json.dumps(report, indent=1)
    write_whole(folder / COUNTS, f"{text}\n".encode())
    template = environment(Path(__file__).parent).get_template("report.html.jinja")
    page = template.render(
        title=f"Prepared: {manifest['source']}",
        report=report,
        facts=list(flatten(dict(manifest))),
        origins=_origins(counts),
        left_out=_left_out(counts),
        small_tables=list(_small_tables(counts)),
        **sorting(),
    )
    write_whole(folder / PAGE, page.encode())
    return report


def summary(folder: Path, report: Mapping[str, Any]) -> str:
    """The report in a few lines."""
    images, messages = report["images"], report["messages"]
    faults = sum(images["faults"].values())
    lines = [
        f"{report['records']:,} records of {report['rows']:,} rows of "
        f"{report['input']['path']}",
        f"images: {images['whole']:,} of {images['distinct']:,} can be used"
        + (f", {faults:,} cannot" if faults else ""),
        f"messages: {messages['read']:,} read, {messages['kept']:,} kept, "
        f"{messages['cut']:,} cut off, {messages['left']:,} left out",
    ]
    reasons = list(report["reasons"].items())
    lines += [f"  left out  {number:>9,}  {why}" for why, number in reasons[:_LINES]]
    if len(reasons) > _LINES:
        rest = sum(number for _, number in reasons[_LINES:])
        others = len(reasons) - _LINES
        lines.append(f"  left out  {rest:>9,}  for {others} other reasons")
    lines += [f"Report: {folder / PAGE}", *(f"Next:   {one}" for one in report["next"])]
    return "\n".join(lines)


def _number(value: int, bad: bool = False) -> Cell:
    return Cell(f"{value:,}", str(value), bad)


def _origins(counts: Mapping[str, Any]) -> list[list[Cell]]:
    rows = []
    for of in counts["origins"]:
        lost = sum(
            one["messages"]
            for one in counts["left_out"]
            if one["origin"] == of["origin"]
        )
        name = Cell(of["origin"], of["origin"])
        numbers = (_number(of["rows"]), _number(of["records"]), _number(lost))
        rows.append([name, *numbers])
    return rows


def _left_out(counts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The reasons, largest first, each with its origins and examples."""
    found = []
    for reason, number in counts["reasons"].items():
        ours = [one for one in counts["left_out"] if one["reason"] == reason]
        rows = [
            [
                Cell(one["origin"], one["origin"]),
                Cell(one["unit"], one["unit"]),
                _number(one["number"]),
                _number(one["messages"]),
            ]
            for one in ours
        ]
        examples = [example for one in ours for example in one["examples"]]
        found.append(
            {"reason": reason, "number": number, "rows": rows, "examples": examples}
        )
    return found


def _small_tables(
    counts: Mapping[str, Any],
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    images = counts["images"]
    width, height = images["largest"]
    about = {
        "distinct images": images["distinct"],
        "that can be used": images["whole"],
        "their bytes": images["bytes"],
    }
    named = {
        "Images": about,
        "Images that cannot be used": images["faults"],
        "Kinds of image file": images["kinds"],
        "Noted of images": images["notes"],
        "Noted of records": counts["notes"],
        "Boxes rewritten": counts["boxes"],
        "Messages": counts["messages"],
        "Records by characters": counts["characters"],
        "Records by messages": counts["messages_of_records"],
    }
    for title, table in named.items():
        rows = [(name, f"{number:,}") for name, number in table.items()]
        if title == "Images" and images["whole"]:
            rows.append(("largest, in pixels", f"{width:,} × {height:,}"))
        if rows:
            yield title, rows
