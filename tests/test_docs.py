"""What the documents promise: links lead somewhere, commands parse, files and tests exist; what they cite and quote."""

import argparse
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.playground import REPOSITORY
from tests.test_imports import MAY_IMPORT
from utils.config import load_config
from utils.parser import parse_args

DOCUMENTS = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/*.md", "docs/*.ipynb", "ckpts/*.md", "data/*.md", "benchmarks/*.md")
    for path in REPOSITORY.glob(pattern)
)
ROOMS = ("datasets", "tools", "benchmarks", "tests")
NOT_PARSED = ("tests.mutation", "tests.fuzz_atheris", "tests.soak")  # need more than the tests, or have no function
OWN = "cfgs/mine/"  # configs of the reader, whose text stands in the document


def text_of(document: Path) -> str:
    text = (REPOSITORY / document).read_text()
    if document.suffix == ".md":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def fenced(text: str, *languages: str) -> list[str]:
    """Blocks between fences that name one of the languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in blocks if language in languages]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text_of(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        place, _, anchor = link.partition("#")
        target = (REPOSITORY / document.parent / place).resolve() if place else REPOSITORY / document
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.relative_to(REPOSITORY))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_anchors_lead_somewhere(document):
    assert broken_links(document, text_of(document)) == []


def test_a_broken_link_is_found():
    text = "[a](FAQ.md) [b](NONE.md) [c](../README.md#commands) [d](../README.md#no-such) [e](https://x.org)\n```\n[f](no)\n```\n"
    assert broken_links(Path("docs/GPUS.md"), text) == ["NONE.md", "../README.md#no-such"]


def test_every_document_is_reached_from_the_readme():
    reached, new = set(), {Path("README.md")}
    while new:
        reached |= new
        links = {
            (REPOSITORY / document.parent / link.partition("#")[0]).resolve()
            for document in new
            for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document))
        }
        new = {document for document in DOCUMENTS if REPOSITORY / document in links} - reached
    assert reached == set(DOCUMENTS)


# ---- commands ----


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command `python …` and `torchrun …`, in blocks and in backticks, from `-m` or the script on.

    Of a synopsis the first of alternatives, all that may be left out, and nothing for "and so on".
    """
    lines = [line for body in fenced(text, "", "bash") for line in body.replace("\\\n", " ").splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    lines += [code for code in inline if not re.fullmatch(r"python -m [\w.]+", code)]  # the name of a command
    for line in lines:
        if "<TAB>" in line:  # typed, and not run
            continue
        if found := re.search(r"(?:^|\s)(?:python3?|torchrun) (?!-c)([^;]*)", line):
            plain = re.sub(r" \| [^\]]*|[\[\]]", "", found[1])
            plain = plain.replace("HEX", 64 * "0").replace("--help MODE", "--help")  # placeholders that are looked at
            words = [word for word in shlex.split(plain, comments=True) if not re.fullmatch(r"…|\$\w+", word)]
            yield words[next((i for i, word in enumerate(words) if word == "-m" or word.endswith(".py")), len(words)) :]


class Parsed(Exception):
    """A module has parsed its command line."""


def parse_for(module: str, words: list[str], patch: pytest.MonkeyPatch) -> None:
    """Have a module parse a command line, and do no more."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*given):
        parse(*given)
        raise Parsed

    package = (REPOSITORY / module.replace(".", "/")).is_dir()
    patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    patch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed):
        importlib.import_module(f"{module}.__main__" if package else module).main()


def refused(words: list[str], folder: Path) -> str:
    """Say why a command is refused, "" if it is not.

    Args:
        words: from `-m` or the script on. Other scripts and modules than ours are not looked at.
        folder: empty; weights that a command names are put there.
    """
    module = words[1] if words[0] == "-m" else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            for name in filter(re.compile(r"(ckpts|experiments)/.+\.|(FILE|IN)$").match, words):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            if words[0] in ("main.py", "my_main.py") and words[1:]:
                parse_args(words[1:])
            elif module.partition(".")[0] in ROOMS and module not in NOT_PARSED:
                parse_for(module, words[2:], patch)
        except SystemExit as end:
            return f"exit code {end.code}" if end.code else ""
        except (ImportError, AttributeError) as error:
            return str(error)
    return ""


def given_files(words: list[str]) -> Iterator[str]:
    """Complaints of files that a command names and that are neither here nor of a kind that is made or got."""
    for flag, name in pairwise(words):
        if flag in ("--config", "--plug_in") and name != "FILE" and not name.startswith(OWN):
            if not (REPOSITORY / name).is_file():
                yield f"no config {name}"
            else:
                load_config(REPOSITORY / name)
    for name in words:
        if name.startswith("ckpts/") and Path(name).name not in weights():
            yield f"ckpts/README.md does not say what {name} is"
        if name.startswith("experiments/"):  # <config folder>/<config name>/<exp_name>/…
            config = "/".join(["cfgs", *name.split("/")[1:3]]) + ".yaml"
            if not config.startswith(OWN) and not (REPOSITORY / config).is_file():
                yield f"no config leaves {name}"


def weights() -> set[str]:
    """Names that ckpts/README.md says, with what may stand in front of those of fine-tuned models."""
    named = set(re.findall(r"`([\w.-]+\.(?:pth|pt|safetensors))`", text_of(Path("ckpts/README.md"))))
    methods = ("point-m2ae", "point-mae", "point-bert", "act")
    return named | {f"{method}_{name}" for method in methods for name in named}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_parse_and_their_files_exist_or_are_to_be_got(document, tmp_path, capsys):
    complaints, given = {}, [*filter(None, commands(text_of(document)))]
    blocks = "".join(fenced(text_of(document), "", "bash"))
    of_blocks = [*filter(None, commands(f"```\n{blocks}```\n"))]
    assert len(of_blocks) >= len(
        re.findall(r"^(?:python|torchrun) (?!.*<TAB>)", blocks, re.MULTILINE)
    )  # none is overlooked
    for words in given:
        found = [*filter(None, [refused(words, tmp_path)]), *given_files(words)]
        if found:
            complaints[" ".join(words)] = found
    assert complaints == {}


def test_what_is_wrong_with_a_command_is_found(tmp_path, capsys):
    text = """`python main.py --config cfgs/demo/pre-train.yaml --vote` and
```
torchrun --nproc_per_node=2 main.py --confg cfgs/demo/pre-train.yaml  # no such flag
python -m tools.features a.ply --ckpts ckpts/none.pth
python -m tools.nothing
python -m datasets.check [NAME …] [--root data | --config FILE] [--ful]
python main.py --config cfgs/demo/none.yaml --test --ckpts experiments/demo/none/a/ckpt-last.pth
```
"""
    found = [(refused(words, tmp_path), [*given_files(words)]) for words in commands(text)]
    assert found == [
        ("exit code 2", []),
        ("exit code 2", ["ckpts/README.md does not say what ckpts/none.pth is"]),
        ("No module named 'tools.nothing'", []),
        ("exit code 2", []),
        ("", ["no config cfgs/demo/none.yaml", "no config leaves experiments/demo/none/a/ckpt-last.pth"]),
        ("exit code 2", []),
    ]


def other_commands(text: str) -> Iterator[tuple[str, bool]]:
    """What pip, make and bash are given, and whether it is here."""
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    lines = [line for body in fenced(text, "", "bash") for line in body.splitlines()]
    for line in [*lines, *re.findall(r"`([^`]+)`", prose(text))]:
        if line.startswith("pip install -r"):
            yield from ((name, (REPOSITORY / name).is_file()) for name in re.findall(r"-r (\S+)", line))
        if found := re.match(r"make (\w+)", line):
            yield line, found[1] in targets
        if found := re.match(r"bash (\S+)", line):
            yield line, (REPOSITORY / found[1]).is_file()


def test_what_pip_make_and_bash_are_given_is_here():
    given = [pair for document in DOCUMENTS for pair in other_commands(text_of(document))]
    assert [name for name, here in given if not here] == []
    assert len(given) > 20
    assert dict(other_commands("`make nothing` `bash none.sh` `pip install -r none.txt`")) == {
        "make nothing": False,
        "bash none.sh": False,
        "none.txt": False,
    }


def test_files_and_tests_that_are_named_exist():
    missing = []
    for document in DOCUMENTS:
        text = prose(text_of(document))
        for module in re.findall(rf"python\s-m\s((?:{'|'.join(ROOMS)})\.\w+)", text_of(document)):
            place = REPOSITORY / module.replace(".", "/")
            if not (place.with_suffix(".py").is_file() or place.is_dir() or module in ("tools.X", "datasets.X")):
                missing.append((str(document), module))
        ours = "\n".join(line.partition(" | ")[2] if line.startswith("| `") else line for line in text.splitlines())
        text = ours if document.name == "MIGRATION.md" else text  # whose tables have the files of others on the left
        for name in re.findall(
            r"`((?:cfgs|tests|tools|models|datasets|docs|benchmarks|extensions)/[\w./-]+\.\w+)", text
        ):
            if not (REPOSITORY / name).exists() and not name.startswith(OWN):
                missing.append((str(document), name))
        last = ""
        for file, test in re.findall(r"`(?:tests/)?(test_\w+\.py|…)::(test_\w+)`", text):
            last = last if file == "…" else file
            if f"def {test}(" not in (REPOSITORY / "tests" / last).read_text():
                missing.append((str(document), f"{last}::{test}"))
    assert missing == []


# ---- what is cited, changed and said in messages ----


def test_what_is_cited_is_this_version_and_the_papers_of_the_readme():
    """As `cffconvert --validate` asks for it, whose schema is that of version 1.2.0."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "title", "message", "authors"}
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    text = (REPOSITORY / "README.md").read_text()
    readme = " ".join(text.split())
    papers = {paper["title"]: paper for paper in citation["references"]}
    assert len(papers) == 6
    assert [
        title for title in papers if not re.search(rf"\*{re.escape(title.removeprefix('Point-M2AE: '))}\*", readme)
    ] == []
    assert all(re.search(rf"{paper['collection-title']},? {paper['year']}", readme) for paper in papers.values())
    for title, authors in re.findall(
        r"title\s+= {(.*)},\n\s+author\s+= {(.*)},", (REPOSITORY / "README.md").read_text()
    ):
        names = [f"{a['family-names']}, {a['given-names']}" for a in papers[title]["authors"]]
        assert names == authors.split(" and ")


def test_the_changelog_keeps_its_form():
    text = text_of(Path("CHANGELOG.md"))
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert version in text
    headings = re.findall(r"^(#+) (.*)$", text, re.MULTILINE)
    assert headings[:2] == [("#", "Changelog"), ("##", "[Unreleased]")]
    kinds = {title for level, title in headings if level == "###"}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_table_of_who_may_import_whom_is_the_one_that_is_tested():
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", text_of(Path("CONTRIBUTING.md")), re.MULTILINE)
    said = {
        room.removesuffix(".py"): set(re.findall(r"`(\w+)`", allowed))
        for rooms, allowed in rows
        for room in re.findall(r"`([\w.]+)`", rooms)
    }
    assert said == MAY_IMPORT


def test_messages_that_the_questions_quote_are_those_of_the_code():
    code = "".join(
        path.read_text() for room in ("utils", "tools", "models") for path in (REPOSITORY / room).rglob("*.py")
    )
    quoted = re.findall(r"^\*\*(.*`.*)\*\*", text_of(Path("docs/FAQ.md")), re.MULTILINE)
    found = [message.strip("…") for question in quoted for message in re.findall(r"`([^`]+)`", question)]
    assert len(found) >= 4
    words = [re.sub(r"^the loss |h_encoder", "", message) for message in found]
    assert [message for message in words if message not in code] == []
