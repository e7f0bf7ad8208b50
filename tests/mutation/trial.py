"""One mutant and its tests."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from .children import STARTED, Child, Clock, fork
from .cover import file_of
from .mutants import Mutant

PATIENCE = 5.0  # times its unmutated seconds that a test may take, and so many seconds more:
GRACE = 60.0


class Trial:
    """A plugin of pytest that runs the chosen tests alone, in the order chosen, and notes the first that fails."""

    def __init__(self, seconds: dict[str, float], clock: Clock):
        self.seconds, self.clock = seconds, clock
        self.passed: set[str] = set()
        self.killed_by = ""

    def pytest_configure(self, config: pytest.Config) -> None:
        """Hypothesis need not look for the smallest example that fails."""
        settings.register_profile("mutation", settings.get_profile("tests"), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutation")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {node: place for place, node in enumerate(self.seconds)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.clock.give(PATIENCE * self.seconds[nodeid] + GRACE)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.killed_by = self.killed_by or f"collecting {report.nodeid}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.killed_by = self.killed_by or report.nodeid
        elif report.when == "call":
            self.passed.add(report.nodeid)


def run_tests(seconds: dict[str, float], clock: Clock) -> dict:
    """Run tests, in a child, until one fails.

    Args:
        seconds: what each takes unmutated; in the order to run.
        clock: set anew for each test.

    Returns:
        `killed_by`: the test that failed, empty where none did; `passed`: how many passed before.
    """
    plugin = Trial(seconds, clock)
    for file in dict.fromkeys(map(file_of, seconds)):  # a file that is not reached is not imported
        options = ("-x", "-q", "--tb=short", "-p", "no:cacheprovider", "--basetemp=../tmp")
        clock.give(STARTED)
        code = pytest.main([*options, file], plugins=[plugin])
        if code != pytest.ExitCode.OK:
            plugin.killed_by = plugin.killed_by or f"{file}: pytest's exit code {int(code)}"
            break
    if not plugin.killed_by and len(plugin.passed) < len(seconds):
        plugin.killed_by = f"{len(seconds) - len(plugin.passed)} tests did not run"
    return {"killed_by": plugin.killed_by, "passed": len(plugin.passed)}


def start(cache: Path, tree: Path, mutant: Mutant, seconds: dict[str, float], place: int) -> Child:
    """Fork a child that tries a mutant."""

    def mutate(copy: Path) -> None:
        file = copy / mutant.file
        file.unlink()
        file.write_text(mutant.source, encoding="utf-8")
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
            compiled.unlink()

    return fork(cache / f"place{place}", tree, mutate, partial(run_tests, seconds), mutant)
