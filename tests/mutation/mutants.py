"""Which mutants there are, and which are drawn."""

import ast
import difflib
import hashlib
import io
import random
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOMS = ("models", "datasets", "extensions", "tools", "utils")
LEFT_OUT = "datasets/synthetic/"  # generated stand-ins: a wrong shape of a chair is no wrong result

MESSAGES = m.Call(
    func=m.Name("print")
    | m.Attribute(value=m.Name("logger"))
    | m.Attribute(value=m.Name("warnings"))
    | m.Attribute(attr=m.Name("error"), value=m.Name("parser"))
)
TEXTS = m.Arg(keyword=m.Name("help") | m.Name("metavar") | m.Name("description") | m.Name("epilog") | m.Name("desc"))
# An argument of these is hardly ever wrong without an error.
PLAIN = m.Call(func=m.Name("len") | m.Name("isinstance"))
NAMES = m.Assign(targets=[m.AssignTarget(target=m.Name("__all__") | m.Name("logger"))])
TYPES = m.Assign(value=m.Call(func=m.Name("TypeVar")))
UNTOUCHED = (
    m.Annotation() | m.Import() | m.ImportFrom() | m.Decorator() | m.Raise() | MESSAGES | TEXTS | PLAIN | NAMES | TYPES
)
STRING_ALONE = m.Expr(value=m.SimpleString() | m.ConcatenatedString())


@dataclass(frozen=True)
class Mutant:
    """A file of the product with one change.

    Args:
        file: its path, relative to the root.
        line: where the change begins.
        function: the qualified name of what it is in, empty outside.
        region: first and last line of what a test must run to meet the mutant: the statement; for one that runs on
            import, the function, class or file it belongs to.
        on_import: whether the place runs when the file is imported.
        source: the whole file with the change.
        diff: the change alone.
    """

    file: str
    line: int
    function: str
    region: tuple[int, int]
    on_import: bool
    source: str
    diff: str

    @property
    def room(self) -> str:
        return self.file.split("/")[0]

    @property
    def name(self) -> str:
        """The same for the same change of the same file."""
        return hashlib.sha256(f"{self.file}\n{self.source}".encode()).hexdigest()[:12]


@dataclass(frozen=True)
class _Site:
    """A place and what could stand there instead: a mutant that is not yet written out."""

    module: cst.Module
    node: cst.CSTNode
    other: cst.CSTNode
    place: tuple[str, int, str, tuple[int, int], bool]  # the first fields of a mutant

    def mutant(self) -> Mutant | None:
        """The mutant; None where the result is no Python or differs from the original in nothing but layout."""
        source = self.module.deep_replace(self.node, self.other).code
        try:
            if ast.dump(ast.parse(source)) == ast.dump(ast.parse(self.module.code)):
                return None
        except SyntaxError:
            return None
        lines = difflib.unified_diff(self.module.code.splitlines(), source.splitlines(), n=0, lineterm="")
        return Mutant(*self.place, source, "\n".join(list(lines)[3:]))


class _Visitor(cst.CSTVisitor):
    """Collects the sites of a file."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, file: str, module: cst.Module):
        super().__init__()
        self.file, self.module = file, module
        self.above: list[cst.CSTNode] = []
        self.sites: list[_Site] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, UNTOUCHED) or m.matches(node, STRING_ALONE):
            return False
        if self.above and m.matches(self.above[-1], m.Assert()) and node is self.above[-1].msg:
            return False
        self.above.append(node)
        for other in (
            other for kind, operator in mutation_operators if isinstance(node, kind) for other in operator(node)
        ):
            if not (isinstance(node, cst.Call) and _texts(node) != _texts(other)):
                self.sites.append(self._site(node, other))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self.above and self.above[-1] is original_node:
            self.above.pop()

    def _lines(self, node: cst.CSTNode) -> tuple[int, int]:
        span = self.get_metadata(PositionProvider, node)
        return span.start.line, span.end.line

    def _site(self, node: cst.CSTNode, other: cst.CSTNode) -> _Site:
        scopes = [n for n in self.above if isinstance(n, cst.FunctionDef | cst.ClassDef)]
        statements = [n for n in self.above if isinstance(n, cst.SimpleStatementLine | cst.BaseCompoundStatement)]
        statement = statements[-1]
        inside = next((n for n in scopes if isinstance(n, cst.FunctionDef) and n is not statement), None)
        if inside is not None and not isinstance(statement, cst.FunctionDef):
            first, last = self._lines(statement)
            if isinstance(statement, cst.BaseCompoundStatement):  # its head: the body is other statements
                last = max(first, self._lines(statement.body)[0] - 1)
        else:
            first, last = self._lines(scopes[-1] if scopes else self.module)
        names = ".".join(scope.name.value for scope in scopes)
        line = self._lines(node)[0] if not isinstance(node, cst.BaseCompoundStatement) else first
        return _Site(self.module, node, other, (self.file, line, names, (first, last), inside is None))


def _texts(call: cst.Call) -> list[cst.BaseExpression]:
    """The arguments of a call that are texts for people."""
    return [argument.value for argument in call.args if m.matches(argument, TEXTS)]


def _sites(root: Path, file: str) -> list[_Site]:
    wrapper = MetadataWrapper(cst.parse_module((root / file).read_text(encoding="utf-8")))
    visitor = _Visitor(file, wrapper.module)
    wrapper.visit(visitor)
    return visitor.sites


def files_of(root: Path, room: str) -> list[str]:
    """The files of a room, relative to the root."""
    files = sorted(path.relative_to(root).as_posix() for path in (root / room).rglob("*.py"))
    return [file for file in files if not file.startswith(LEFT_OUT)]


def lines_of_code(source: str) -> int:
    """Lines that hold more than a comment or a docstring."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    begins = True  # a statement
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            if not (begins and token.type == tokenize.STRING):
                lines |= set(range(token.start[0], token.end[0] + 1))
            begins = False
        elif token.type == tokenize.NEWLINE:
            begins = True
    return len(lines)


def shares(root: Path, total: int) -> dict[str, int]:
    """How many of all mutants each room gets: in proportion to its lines of code, the largest remainders rounded up."""
    lines = {
        room: sum(lines_of_code((root / file).read_text(encoding="utf-8")) for file in files_of(root, room))
        for room in ROOMS
    }
    exact = {room: total * count / sum(lines.values()) for room, count in lines.items()}
    drawn = {room: int(share) for room, share in exact.items()}
    for room in sorted(exact, key=lambda room: drawn[room] - exact[room])[: total - sum(drawn.values())]:
        drawn[room] += 1
    return drawn


def draw(root: Path, room: str, count: int, seed: int) -> list[Mutant]:
    """Draw mutants of a room: a line, then one of its changes; no line twice before each has had its turn.

    The draw of a line depends on the seed, the file and what the line says: other lines and files may change.
    """
    lines: dict[str, list[_Site]] = {}
    for file in files_of(root, room):
        lines |= _sites_by_line((root / file).read_text(encoding="utf-8"), _sites(root, file))
    generators = {line: random.Random(f"{seed} {line}") for line in lines}
    order = sorted(lines, key=lambda line: generators[line].random())
    drawn: dict[str, Mutant] = {}
    while order and len(drawn) < count:
        left = []
        for line in order:
            mutant = _draw_one(lines[line], generators[line])
            if mutant is not None:
                drawn[mutant.name] = mutant
                left.append(line)
            if len(drawn) == count:
                break
        order = left
    return sorted(drawn.values(), key=lambda mutant: (mutant.file, mutant.line))


def _sites_by_line(source: str, sites: list[_Site]) -> dict[str, list[_Site]]:
    """Group the sites of a file by line; a line goes by its file, its text and how often that came before."""
    seen: Counter[str] = Counter()
    names = []
    for text in source.splitlines():
        seen[text] += 1
        names.append(f"{text} {seen[text]}")
    lines = defaultdict(list)
    for site in sites:
        file, number = site.place[:2]
        lines[f"{file} {names[number - 1]}"].append(site)
    return lines


def _draw_one(sites: list[_Site], generator: random.Random) -> Mutant | None:
    """Take out sites at random until one makes a mutant."""
    while sites:
        mutant = sites.pop(generator.randrange(len(sites))).mutant()
        if mutant is not None:
            return mutant
    return None
