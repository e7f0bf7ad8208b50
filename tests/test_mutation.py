"""What mutation testing changes and which tests it chooses; `python -m tests.mutation --check` tries the rest."""

from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="needs tests/requirements-mutation.txt")
pytest.importorskip("coverage", reason="needs tests/requirements-mutation.txt")

from tests.mutation.cover import PROCESSES, Map
from tests.mutation.mutants import Mutant, draw, lines_of_code, shares

UNTOUCHED = '''"""A file of which nothing may be changed."""

import logging
from typing import TypeVar

import numpy as np  # the number 1

__all__ = ["f"]
logger = logging.getLogger("name")
T = TypeVar("T")


class C:
    """A docstring with a number, 1."""

    x: "int"

    @property
    def f(self, a: "list[1]") -> "dict[1, 2]":
        """Another."""
        logger.info("text %d", 1 + 1)
        print("text", 1 + 1)
        assert a, f"text {1 + 1}"
        parser.add_argument(help="text")
        parser.error("text")
        raise ValueError("text", 1 + 1)
'''
TOUCHED = '''"""Doc."""

SIZE = 2


class C:
    y = SIZE + 1

    def f(self, a=3):
        if a > (
            4
        ):
            return a - 1
        return [
            a,
            len(a) + 5,
        ]
'''


def tree_of(folder: Path, source: str) -> Path:
    for room in ("models", "datasets/synthetic", "extensions", "tools", "utils"):
        (folder / room).mkdir(parents=True)
    (folder / "models/a.py").write_text(source)
    (folder / "datasets/synthetic/b.py").write_text(source)
    return folder


def test_texts_types_and_imports_are_left_alone(tmp_path):
    assert draw(tree_of(tmp_path, UNTOUCHED), "models", 1000, 0) == []


def test_each_change_is_one_place_of_one_file(tmp_path):
    tree = tree_of(tmp_path, TOUCHED)
    mutants = draw(tree, "models", 1000, 0)
    assert {mutant.line for mutant in mutants} == {3, 7, 9, 10, 11, 13, 16}
    assert len({mutant.source for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        changed = [
            n
            for n, pair in enumerate(zip(TOUCHED.split("\n"), mutant.source.split("\n"), strict=True), 1)
            if len(set(pair)) > 1
        ]
        assert changed == [mutant.line]
        compile(mutant.source, mutant.file, "exec")
    assert draw(tree, "datasets", 1000, 0) == []  # generated shapes are left out


def test_a_test_must_run_the_statement_or_what_an_import_defines(tmp_path):
    mutants = draw(tree_of(tmp_path, TOUCHED), "models", 1000, 0)
    assert {mutant.line: (mutant.function, mutant.region, mutant.on_import) for mutant in mutants} == {
        3: ("", (1, 18), True),
        7: ("C", (6, 17), True),
        9: ("C.f", (9, 17), True),
        10: ("C.f", (10, 12), False),
        11: ("C.f", (10, 12), False),
        13: ("C.f", (13, 13), False),
        16: ("C.f", (14, 17), False),
    }


def test_a_draw_takes_each_line_before_it_takes_one_twice(tmp_path):
    tree = tree_of(tmp_path, TOUCHED)
    first = draw(tree, "models", 7, seed=0)
    assert sorted(mutant.line for mutant in first) == [3, 7, 9, 10, 11, 13, 16]
    assert first == draw(tree, "models", 7, seed=0)
    assert any(first != draw(tree, "models", 7, seed) for seed in range(1, 5))


def test_rooms_share_mutants_by_their_lines_of_code(tmp_path):
    assert lines_of_code(UNTOUCHED) == 16
    tree = tree_of(tmp_path, TOUCHED)
    (tree / "tools/c.py").write_text("x = 1\n\n# comment\ny = 2\n")
    assert lines_of_code(TOUCHED) == 12
    assert shares(tree, 100) == {"models": 86, "datasets": 0, "extensions": 0, "tools": 14, "utils": 0}


def test_the_tests_that_run_a_line_are_chosen_own_files_first_and_fastest_first(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_own.py").write_text("from models.a import f\n")
    (tmp_path / "tests/test_other.py").write_text("import main\n")

    def measured(file: str, seconds: list[float], lines: dict[str, list[str]], fixtures: dict[str, float]) -> dict:
        tests = {f"{file}::test_{i}": {"seconds": s, "fixtures": list(fixtures)} for i, s in enumerate(seconds)}
        named = {n: [x if " " in x else f"{file}::{x}" for x in names] for n, names in lines.items()}
        return {"tests": tests, "fixtures": fixtures, "lines": {"models/a.py": named}}

    found = Map(
        tmp_path,
        {
            "tests/test_other.py": measured("tests/test_other.py", [1.0, 2.0], {"5": ["fixture run"]}, {"run": 10.0}),
            "tests/test_own.py": measured("tests/test_own.py", [8.0, 3.0, 1.0], {"5": ["test_0", "test_1"]}, {}),
        },
    )
    mutant = Mutant("models/a.py", 5, "f", (4, 6), False, "", "")
    own, other = ["tests/test_own.py::test_1", "tests/test_own.py::test_0"], ["tests/test_other.py::test_0"]
    assert found.selection(mutant, 60) == [*own, *other, "tests/test_other.py::test_1"]
    assert found.selection(mutant, 22) == [*own, *other]  # 8 + 3 + 10 for the fixture + 1
    assert found.selection(mutant, 5) == own[:1]
    assert found.selection(Mutant("models/a.py", 9, "f", (9, 9), False, "", ""), 60) == []
    at_import = Mutant("models/a.py", 1, "", (1, 3), True, "", "")
    assert found.selection(at_import, 60) == [f"tests/test_own.py::test_{i}" for i in (2, 1, 0)]


def test_what_runs_on_import_is_met_by_all_tests_that_import_it(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_own.py").write_text("from models.a import f\n")
    node = "tests/test_own.py::test"
    measured = {
        "tests": {node: {"seconds": 1.0, "fixtures": []}},
        "fixtures": {},
        "lines": {"models/a.py": {"5": [""]}},
    }
    found = Map(tmp_path, {"tests/test_own.py": measured})
    places = {
        "of the file": (("", (1, 9), True), [node]),
        "of a function called by one": (("f", (5, 5), False), [node]),
    }
    places |= {"of one that is not": (("g", (7, 7), False), []), "a default of it": (("g", (6, 7), True), [])}
    for name, (place, chosen) in places.items():
        assert found.selection(Mutant("models/a.py", 5, *place, "", ""), 60) == chosen, name


def test_files_that_run_in_other_processes_exist():
    root = Path(__file__).parents[1]
    assert [name for files in PROCESSES.items() for name in (files[0], *files[1]) if not (root / name).is_file()] == []
