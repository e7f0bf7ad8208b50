"""Completion in a shell: what argcomplete is told through its own protocol, and that nothing else depends on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import main
from tests.test_help import MODULES
from utils.command import Parser

ROOT = Path(__file__).parents[1]
SEPARATOR = "\013"


def complete(tmp_path, line):
    """What can follow a line that was typed so far, and the modules that had to be imported to know it.

    As argcomplete's shell code does it: the line in the environment, what can follow on file descriptor 8.
    """
    pytest.importorskip("argcomplete")
    words = line.split()
    command = words[1:3] if words[1] == "-m" else words[1:2]
    environment = {
        **os.environ,
        "_ARGCOMPLETE": str(len(command) + 1),
        "_ARGCOMPLETE_IFS": SEPARATOR,
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \"'><=;|&(:",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPROFILEIMPORTTIME": "1",
    }
    script = 'exec "$@" 8>"$FOLLOWS" 9>/dev/null 1>/dev/null 2>"$IMPORTS"'
    files = {"FOLLOWS": str(tmp_path / "follows"), "IMPORTS": str(tmp_path / "imports")}
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, *command], cwd=ROOT, env=environment | files, check=False
    )
    assert done.returncode == 0
    imports = re.findall(r"\|\s+(\S+)$", (tmp_path / "imports").read_text(), re.MULTILINE)
    return (tmp_path / "follows").read_text().split(SEPARATOR), imports


@pytest.mark.parametrize(
    ("line", "follows"),
    [
        ("python main.py --te", {"--test", "--test_svm", "--test_bank"}),
        ("python main.py --config cfgs/pre", {"cfgs/pre-training/"}),
        ("python main.py --amp b", {"bf16"}),
        ("python -m datasets.check ShapeNetP", {"ShapeNetPart"}),
        ("python -m tools.features --ckpts ckpts/demo", {"ckpts/demo-teacher.safetensors"}),
    ],
)
def test_what_can_follow_is_told_without_pytorch(tmp_path, line, follows):
    found, imports = complete(tmp_path, line)
    assert {word.strip() for word in found} == follows
    assert "argcomplete" in imports
    assert "torch" not in imports


@pytest.mark.parametrize("module", MODULES)
def test_a_shell_knows_that_a_command_can_be_asked(module):
    path = ROOT / f"{module.replace('.', '/')}.py"
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    assert "PYTHON_ARGCOMPLETE_OK" in path.read_text()[:1024]
    assert "PYTHON_ARGCOMPLETE_OK" in (ROOT / "main.py").read_text()[:1024]


def test_without_argcomplete_everything_else_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    parser = Parser(prog="a")
    parser.add_argument("--b")
    assert parser.parse_args(["--b", "c"]).b == "c"


def test_a_shell_that_asks_where_argcomplete_is_missing_is_told_nothing_and_nothing_runs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    monkeypatch.setenv("_ARGCOMPLETE", "2")
    with pytest.raises(SystemExit) as ended:
        main.main([])
    assert ended.value.code == 1
    assert capsys.readouterr() == ("", "")


def test_the_lines_of_the_readme_complete_in_bash():
    pytest.importorskip("argcomplete")
    readme = (ROOT / "README.md").read_text()
    install, activate, typed = re.search(
        r"^(pip .*shell.txt)\n(eval .*?) +#.*\n(.*)<TAB>$", readme, re.MULTILINE
    ).groups()
    assert "argcomplete" in (ROOT / install.split()[-1]).read_text()
    script = f"""
export PATH={Path(sys.executable).parent}:$PATH
{activate}
COMP_LINE="{typed}" COMP_POINT={len(typed)} COMP_WORDS=({typed}) COMP_CWORD=3
_python_argcomplete_global python 2>/dev/null
echo "${{COMPREPLY[*]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "modelnet40\n"
