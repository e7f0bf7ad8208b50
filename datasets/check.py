# PYTHON_ARGCOMPLETE_OK
"""Command line: say which data sets are there, what they hold, what is wrong with them, and how to get the others."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.hints import check_source
from datasets.sources import SOURCES, Source
from utils.command import Parser, file_there, run_command
from utils.config import load_config
from utils.tables import format_table

if TYPE_CHECKING:  # what reads arrays is imported once the command line is known to be right
    from datasets.inspection import Finding

SHOWN = 3  # missing files, problems and notes of one data set; --json has all


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(
        prog="python -m datasets.check",
        description="Say which of the published data sets are there, whole, and as published. Exit code 0 when all "
        "that were asked for are there and whole, be they the published ones, a part of them or generated shapes "
        "(the column `is` says which), 1 otherwise.",
        examples=["python -m datasets.check", "python -m datasets.check ShapeNet --root data/synthetic --full"],
    )
    names = parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)} (all)")
    names.completer = lambda **_: list(SOURCES)  # of argcomplete, where a shell asks it
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--root", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    where.add_argument("--config", type=file_there, metavar="FILE", help="look at what this config reads, instead")
    parser.add_argument("--full", action="store_true", help="read every cloud: not finite, all zeros, the same twice")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    for name in args.names:
        check_source(parser, name)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and return the exit code."""
    args = parse_args(argv)
    asked = list(_entries(args))
    from datasets.inspection import inspect

    if args.full:
        from utils.logger import setup_logger

        setup_logger(None)
    findings = [inspect(entry, args.full) for entry in asked]
    print(json.dumps([_plain(finding) for finding in findings], indent=2) if args.json else text_of(findings))
    return 0 if findings and all(finding.whole for finding in findings) else 1


def text_of(findings: Sequence["Finding"]) -> str:
    """The table, and below it what is wrong with each and how to get what is missing."""
    rows = [
        [finding.name, finding.title, finding.verdict, _clouds(finding), _points(finding), _classes(finding)]
        for finding in findings
    ]
    table = format_table(rows, ["data set", "version", "is", "clouds", "points", "classes"])
    lines, told = [table], set()
    for finding in findings:
        lines += _lines(finding)
        if not finding.whole and finding.name not in told:
            source = SOURCES[finding.name]
            lines += [f"  way out: {finding.way_out}"]
            lines += [f"  published by {source.published_by}; terms: {source.terms}"]
            told.add(finding.name)
    return "\n".join(lines)


def _entries(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is asked for: an entry for each version, once."""
    from datasets.inspection import entries

    if args.config is None:
        yield from entries(args.root, args.names or SOURCES)
        return
    seen = []
    for entry in load_config(args.config).dataset.values():
        place = {key: value for key, value in entry.items() if key != "others"}
        if place["NAME"] in (args.names or SOURCES) and place not in seen:
            seen.append(place)
            _check_entry(place, args.config)
            yield place
    if not seen:
        raise ValueError(f"{args.config} reads none of {', '.join(args.names or SOURCES)}; name a folder with --root")


def _check_entry(entry: dict[str, Any], config: Path) -> None:
    """Refuse an entry of a config that does not say where its data set is, or which version it is."""
    source = SOURCES[entry["NAME"]]
    for key in source.folders:
        if not isinstance(entry.get(key), str):
            raise ValueError(f"{config}: {key} of {entry['NAME']} is {entry.get(key)!r}; give the path of a folder")
    if len(source.versions) > 1 and entry.get("SPLIT") not in source.versions:
        valid = ", ".join(source.versions)
        raise ValueError(f"{config}: SPLIT of {entry['NAME']} is {entry.get('SPLIT')!r}; choose one of {valid}")


def _plain(finding: "Finding") -> dict[str, Any]:
    source = SOURCES[finding.name]
    return {
        **vars(finding),
        "missing": {"count": len(finding.missing), "files": finding.missing},
        "whole": finding.whole,
        "published": source.versions[_split(finding, source)].clouds,
        "terms": source.terms,
        "url": source.url,
    }


def _split(finding: "Finding", source: Source) -> str:
    return next(split for split, version in source.versions.items() if version.title == finding.title)


def _clouds(finding: "Finding") -> str:
    counts = [f"{_number(split['clouds'])} {subset}" for subset, split in finding.splits.items()]
    return " + ".join(counts) or "-"


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _points(finding: "Finding") -> str:
    numbers = sorted({split["points"] for split in finding.splits.values() if split["points"] is not None})
    return ", ".join(map(str, numbers)) or "-"


def _classes(finding: "Finding") -> str:
    """The number of classes, and how many clouds the smallest and the largest of the first subset have."""
    labels = next(iter(finding.splits.values()), {}).get("labels")
    return f"{len(labels)}, of {min(labels.values())} to {max(labels.values())}" if labels else "-"


def _lines(finding: "Finding") -> Iterator[str]:
    """What is to be said of a data set: where it is and what tells; what is missing, wrong, worth knowing."""
    yield f"\n{finding.name}, {finding.title}: {finding.folder}: {finding.verdict}, {finding.reason}"
    if finding.missing:
        yield f"  missing: {_some(finding.missing)}"
    for problem in finding.problems[:SHOWN]:
        yield f"  wrong: {problem}"
    if len(finding.problems) > SHOWN:
        yield f"  wrong: {len(finding.problems) - SHOWN:,} more; --json has them all"
    for note in finding.notes[:SHOWN]:
        yield f"  note: {note}"
    if finding.ranges:
        yield "  read: {clouds:,} clouds, farthest point {smallest radius:.3g} to {largest radius:.3g} from 0".format(
            **finding.ranges
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{len(names):,} files, {', '.join(names[:SHOWN])}{more}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
