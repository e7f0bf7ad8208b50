"""Which tests run which lines, and how long they take."""

import ast
import contextlib
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import coverage
import pytest

from .children import Child, Clock, fork, in_turn
from .mutants import ROOMS, Mutant

MEASURED = 1800.0  # seconds that the tests of one file may take
# Tests that start processes of their own, and the files that run there, which coverage.py does not see.
TRAINING = tuple(f"tools/training/{name}.py" for name in ("builder", "engine", "run", "state", "trainer"))
PROCESSES = {
    "tests/test_cuda_runtime.py": ("extensions/cuda_runtime.py",),
    "tests/test_distributed.py": (
        *(*TRAINING, "tools/runner_pretrain.py", "tools/evaluation/classification.py", "tools/evaluation/inference.py"),
        *("utils/distributed.py", "utils/seed.py"),
    ),
    "tests/test_dry_run.py": ("tools/training/dry_run.py", "tools/training/repeat.py"),
    "tests/test_faults.py": (*TRAINING, "tools/training/report.py", "utils/checkpoint.py", "utils/files.py"),
    "tests/test_pack.py": ("datasets/pack.py", "datasets/packed.py"),
    "tests/test_resume.py": (
        *(*TRAINING, "utils/checkpoint.py", "utils/files.py", "utils/seed.py", "utils/signals.py"),
    ),
}
# Of these, tests that wait for processes, which a busy machine makes late: no other file's mutants meet them.
WAITING = {f"tests/test_{name}.py" for name in ("distributed", "dry_run", "faults", "resume")}


class Measure:
    """A plugin of pytest that says coverage.py which test, or which shared fixture, is running."""

    def __init__(self, cov: coverage.Coverage, clock: Clock):
        self.cov, self.clock = cov, clock
        self.running = ""
        self.seconds: dict[str, float] = defaultdict(float)  # of each context
        self.needs: dict[str, list[str]] = {}  # fixtures that a test names, by its node id
        self.bad: set[str] = set()

    @contextlib.contextmanager
    def _as(self, context: str) -> Iterator[None]:
        outer, self.running = self.running, context
        self.cov.switch_context(context)
        begun = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - begun
            self.seconds[context] += taken
            if outer:
                self.seconds[outer] -= taken
            self.running = outer
            self.cov.switch_context(outer)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        self.needs[item.nodeid] = list(item.fixturenames)
        with self._as(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        with self._as(f"fixture {fixturedef.argname}"):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.bad.add(report.nodeid)


def measure_file(test_file: str, clock: Clock) -> dict:
    """Run the tests of a file under coverage.py, in a child.

    Returns:
        `tests`: seconds and shared fixtures of each test that passed; `fixtures`: seconds of each; `lines`: for each
        file of ours and each line, the tests and fixtures that ran it, "" for the imports.
    """
    clock.give(MEASURED)
    cov = coverage.Coverage(data_file=None, config_file=False, source=[os.path.abspath(room) for room in ROOMS])
    cov.start()
    plugin = Measure(cov, clock)
    pytest.main(["-q", "-p", "no:cacheprovider", "--basetemp=../tmp", test_file], plugins=[plugin])
    cov.stop()
    data = cov.get_data()
    lines: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        lines[Path(path).relative_to(Path.cwd()).as_posix()] = data.contexts_by_lineno(path)
    fixtures = {name.removeprefix("fixture "): s for name, s in plugin.seconds.items() if name.startswith("fixture ")}
    tests = {
        node: {"seconds": plugin.seconds[node], "fixtures": [name for name in needs if name in fixtures]}
        for node, needs in plugin.needs.items()
        if node not in plugin.bad
    }
    return {"tests": tests, "fixtures": fixtures, "lines": lines, "bad": sorted(plugin.bad)}


def content_hash(files: Iterator[Path] | list[Path]) -> str:
    """A hash of what is in files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def imported_by(tree: Path, test_file: str) -> list[str]:
    """The files of ours that a test file names in its imports."""
    found = set()
    for node in ast.walk(ast.parse((tree / test_file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        stems = [name.replace(".", "/") for name in names if name.split(".")[0] in ROOMS]
        found |= {file for stem in stems for file in (f"{stem}.py", f"{stem}/__init__.py") if (tree / file).is_file()}
    return sorted(found)


def measure(cache: Path, tree: Path, jobs: int, say: Callable[[str], None]) -> "Map":
    """Measure each test file that is not yet measured as it is, or for which the product or a helper changed."""
    folder = cache / "measured"
    folder.mkdir(parents=True, exist_ok=True)
    test_files = sorted(path.relative_to(tree).as_posix() for path in (tree / "tests").glob("test_*.py"))
    shared = [path for room in ROOMS for path in sorted((tree / room).rglob("*.py"))]
    shared += [tree / "main.py", *(path for path in sorted((tree / "tests").glob("*.py")) if "test_" not in path.name)]
    state = content_hash(shared)
    kept = {file: folder / f"{Path(file).stem}-{state}-{content_hash([tree / file])}.json" for file in test_files}

    def start(file: str, place: int) -> Child:
        return fork(cache / f"place{place}", tree, lambda copy: None, partial(measure_file, file), file)

    missing = [file for file in test_files if not kept[file].exists()]
    for child in in_turn(jobs, (partial(start, file) for file in missing)):
        answer = child.answer
        if answer is None:
            raise RuntimeError(f"{child.about} did not run to its end: {child.folder / 'log.txt'}")
        for old in folder.glob(f"{Path(child.about).stem}-*.json"):
            old.unlink()
        kept[child.about].write_text(json.dumps(answer))
        seconds = sum(test["seconds"] for test in answer["tests"].values())
        left_out = f"; left out, since they failed or were skipped: {len(answer['bad'])}" if answer["bad"] else ""
        say(f"{child.about}: {len(answer['tests'])} tests, {seconds:.0f} s{left_out}")
    return Map(tree, {file: json.loads(path.read_text()) for file, path in kept.items()})


class Map:
    """What was measured.

    Args:
        tree: where.
        measured: by test file, what `measure_file` returns.
    """

    def __init__(self, tree: Path, measured: dict[str, dict]):
        self.measured = measured
        self.imports = {file: imported_by(tree, file) for file in measured}
        self.contents = {file: content_hash([tree / file]) for file in measured}

    def tests_of(self, mutant: Mutant) -> dict[str, list[str]]:
        """The tests that run the region of a mutant, by test file."""
        first, last = mutant.region
        chosen = {}
        for file, found in self.measured.items():
            by_file = mutant.file in PROCESSES.get(file, ())
            if file in WAITING and not by_file:
                continue
            lines = found["lines"].get(mutant.file, {})
            ran = {name for line, names in lines.items() if first <= int(line) <= last for name in names}
            at_import = mutant.function == "" if mutant.on_import else "" in ran  # of a function: called by one
            by_import = at_import and mutant.file in self.imports[file]
            tests = [
                node
                for node, test in found["tests"].items()
                if by_file or by_import or node in ran or any(f"fixture {name}" in ran for name in test["fixtures"])
            ]
            if tests:
                chosen[file] = tests
        return chosen

    def selection(self, mutant: Mutant, limit: float) -> list[str]:
        """The tests of a mutant that fit in the time, file by file.

        Chosen are first those of test files that import its module, then the others, each time the fastest first.
        Tests that start processes for this very file come last and have the same time for themselves.
        """
        tests_of = self.tests_of(mutant)
        late = {file: tests for file, tests in tests_of.items() if mutant.file in PROCESSES.get(file, ())}
        early = {file: tests for file, tests in tests_of.items() if file not in late}
        return [node for tests in (early, late) for node in self._fitting(mutant, tests, limit)]

    def _fitting(self, mutant: Mutant, tests_of: dict[str, list[str]], left: float) -> list[str]:
        def rank(node: str) -> tuple[bool, float]:
            return mutant.file not in self.imports[file_of(node)], self.cost(node)

        chosen: dict[str, list[str]] = defaultdict(list)
        fixtures: set[tuple[str, str]] = set()
        for node in sorted((node for tests in tests_of.values() for node in tests), key=rank):
            file, test = file_of(node), self.test(node)
            new = {(file, name) for name in test["fixtures"]} - fixtures
            cost = test["seconds"] + sum(self.measured[file]["fixtures"][name] for file, name in new)
            if cost <= left:
                chosen[file].append(node)
                fixtures |= new
                left -= cost
        order = sorted(chosen, key=lambda file: (rank(chosen[file][0])[0], sum(map(self.cost, chosen[file]))))
        return [node for file in order for node in chosen[file]]

    def test(self, node: str) -> dict:
        return self.measured[file_of(node)]["tests"][node]

    def cost(self, node: str) -> float:
        """Seconds that a test takes with all its fixtures."""
        fixtures = self.measured[file_of(node)]["fixtures"]
        return self.test(node)["seconds"] + sum(fixtures[name] for name in self.test(node)["fixtures"])


def file_of(node: str) -> str:
    """The test file of a test's id."""
    return node.split("::")[0]
