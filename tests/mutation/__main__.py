"""Change one place of the product at a time, and see whether a test notices."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before what reads them

from .children import ROOT, Child, in_turn, preload, sync_tree
from .cover import Map, content_hash, file_of, measure
from .mutants import ROOMS, Mutant, draw, files_of, shares
from .trial import start

SURVIVED = ("survived", "untested")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "i2p-mae-mutation"))
    parser.add_argument("--mutants", type=int, default=400, help="how many in all rooms together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--files", nargs="+", help="try only the drawn mutants of these files")
    parser.add_argument("--seconds", type=float, default=60, help="unmutated time of the tests of a mutant")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="try an unmutated tree and a broken one instead")
    parser.add_argument("--report", action="store_true", help="only print what is known")
    args = parser.parse_args()
    if args.cache.resolve().is_relative_to(ROOT):
        parser.error(f"--cache {args.cache} is inside the repository; choose a folder outside")
    return args


def drawn(args: argparse.Namespace, tree: Path) -> list[Mutant]:
    """The mutants of the chosen rooms, made once and kept."""
    counts = shares(tree, args.mutants)
    mutants = []
    for room in args.rooms:
        state = content_hash([tree / "tests/mutation/mutants.py", *(tree / file for file in files_of(tree, room))])
        kept = args.cache / "drawn" / f"{room}-{counts[room]}-{args.seed}-{state}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([asdict(mutant) for mutant in draw(tree, room, counts[room], args.seed)]))
        mutants += [Mutant(**{**fields, "region": tuple(fields["region"])}) for fields in json.loads(kept.read_text())]
    return [mutant for mutant in mutants if args.files is None or mutant.file in args.files]


class Results:
    """Outcomes, appended to a file of JSON lines as they come; the last of a mutant counts."""

    def __init__(self, file: Path):
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.found = {line["name"]: line for line in map(json.loads, lines)}

    def add(self, mutant: Mutant, **outcome: object) -> None:
        fields = asdict(mutant)
        del fields["source"]
        line = {"name": mutant.name, **fields, **outcome}
        self.found[mutant.name] = line
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def valid(self, mutant: Mutant, tests: Map, chosen: list[str]) -> bool:
        """Whether the outcome still holds: what killed it is as it was, or all that did not kill it."""
        line = self.found.get(mutant.name)
        return line is not None and line["tests"] == against(tests, line["killed_by"], chosen)


def against(tests: Map, killed_by: str, chosen: list[str]) -> dict[str, str]:
    """The test files that decided an outcome, with their contents' hashes."""
    files = map(file_of, [killed_by] if "::" in killed_by else chosen)
    return {file: tests.contents.get(file, "gone") for file in sorted(set(files))}


def try_all(args: argparse.Namespace, tree: Path, tests: Map, mutants: list[Mutant], results: Results) -> None:
    """Try the mutants whose outcome is not known."""
    chosen = {mutant.name: tests.selection(mutant, args.seconds) for mutant in mutants}
    missing = [mutant for mutant in mutants if not results.valid(mutant, tests, chosen[mutant.name])]
    print(f"{len(mutants)} mutants, {len(missing)} to try", flush=True)

    def starts() -> Iterator[partial]:
        for mutant in missing:
            if nodes := chosen[mutant.name]:
                yield partial(start, args.cache, tree, mutant, {node: tests.cost(node) for node in nodes})
            else:
                results.add(mutant, outcome="untested", killed_by="", seconds=0.0, tried=0, tests={})

    begun = time.monotonic()
    for number, child in enumerate(in_turn(args.jobs, starts()), 1):
        outcome, killed_by = outcome_of(child)
        nodes = chosen[child.about.name]
        seconds = round(time.monotonic() - child.begun, 1)
        files = against(tests, killed_by, nodes)
        results.add(child.about, outcome=outcome, killed_by=killed_by, seconds=seconds, tried=len(nodes), tests=files)
        place = f"{child.about.file}:{child.about.line}"
        mean = (time.monotonic() - begun) / number
        print(f"{number} {outcome:8} {seconds:5.1f} s (mean {mean:.1f}) {place} {killed_by}", flush=True)


def outcome_of(child: Child) -> tuple[str, str]:
    """What became of a mutant, and the test that killed it."""
    answer = child.answer
    if answer is None:
        return ("timeout", "") if child.clock.over else ("killed", "the process died")
    return ("killed", answer["killed_by"]) if answer["killed_by"] else ("survived", "")


def check(args: argparse.Namespace, tree: Path, tests: Map, mutants: list[Mutant]) -> int:
    """Of each file, try the tests of one mutant on the file as it is, and with an error in the mutant's place."""
    samples = list({mutant.file: mutant for mutant in mutants if not mutant.on_import}.values())
    wrong = 0
    for sample in samples:
        original = (tree / sample.file).read_text(encoding="utf-8")
        lines = original.splitlines(keepends=True)
        first = sample.region[0] - 1
        indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
        broken = "".join([*lines[:first], f"{indent}raise AssertionError('broken')\n", *lines[first:]])
        for source, expected in ((original, "survived"), (broken, "killed")):
            mutant = Mutant(**{**asdict(sample), "source": source})
            nodes = tests.selection(sample, args.seconds)
            seconds = {node: tests.cost(node) for node in nodes}
            (child,) = in_turn(1, iter([partial(start, args.cache, tree, mutant, seconds)]))
            outcome, killed_by = outcome_of(child)
            taken = time.monotonic() - child.begun
            good = outcome == expected
            wrong += not good
            note = f"{taken:.1f} s, unmutated {sum(tests.test(node)['seconds'] for node in nodes):.1f} s"
            print(
                f"{'as expected' if good else 'WRONG'}: {sample.file}:{sample.line} {outcome} {killed_by} ({note})",
                flush=True,
            )
    return int(wrong > 0)


def report(mutants: list[Mutant], results: Results) -> None:
    """Print the table of the rooms and the mutants that no test noticed."""
    found = {mutant.name: results.found[mutant.name] for mutant in mutants if mutant.name in results.found}
    print("\n| room | drawn | killed | of these by a time limit | survived | of these met by no test | killed, share |")
    print("|---|---|---|---|---|---|---|")
    rooms = [room for room in ROOMS if any(mutant.room == room for mutant in mutants)]
    for title, members in [*((f"`{room}/`", [room]) for room in rooms), ("all", rooms)]:
        count = Counter(found[m.name]["outcome"] for m in mutants if m.room in members and m.name in found)
        killed, survived = count["killed"] + count["timeout"], count["survived"] + count["untested"]
        numbers = [killed + survived, killed, count["timeout"], survived, count["untested"]]
        share = f"{100 * killed / (killed + survived):.1f} %" if killed + survived else "–"
        print(f"| {title} | {' | '.join(map(str, numbers))} | {share} |")
    if len(found) < len(mutants):
        print(f"\n{len(mutants) - len(found)} of {len(mutants)} mutants are not tried yet.")
    for mutant in mutants:
        line = found.get(mutant.name)
        if line and line["outcome"] in SURVIVED:
            print(f"\n{line['outcome']} {mutant.name} {mutant.file}:{mutant.line} {mutant.function}\n{mutant.diff}")


def main() -> int:
    args = parse()
    args.cache.mkdir(parents=True, exist_ok=True)
    tree = args.cache / "tree"
    tree.mkdir(exist_ok=True)
    sync_tree(tree)
    mutants = drawn(args, tree)
    results = Results(args.cache / "results.jsonl")
    if not args.report:
        preload()
        tests = measure(args.cache, tree, args.jobs, partial(print, flush=True))
        if args.check:
            return check(args, tree, tests, mutants)
        try_all(args, tree, tests, mutants, results)
    report(mutants, results)
    return 0


sys.exit(main())
