"""Coverage-guided fuzzing of the readers, by hand: `python -m tests.fuzz_atheris "few-shot" -max_total_time=60`.

Needs atheris (`pip install atheris`; it has wheels for Python 3.11 and newer). The first argument is a name in
`tests.test_fuzz.TARGETS`, the others are libFuzzer's. Code of data sets and utils is instrumented; an exception other
than ValueError and OSError ends the search and leaves the file that caused it.
"""

import contextlib
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["datasets", "utils", "yaml", "numpy.lib"]):
    from tests.test_fuzz import TARGETS, make_target

MEMORY_MB = 3000  # of the process; PyTorch alone takes one


def fuzz(name: str, options: list[str]) -> None:
    """Search for a file that a reader cannot cope with, beginning from the valid one; does not return."""
    with TemporaryDirectory() as folder:
        target = make_target(name, Path(folder))
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        (corpus / "valid").write_bytes(target.file.read_bytes())

        def read(content: bytes) -> None:
            target.file.write_bytes(content)
            with contextlib.suppress(ValueError, OSError):
                target.read()

        limits = [f"-rss_limit_mb={MEMORY_MB}", f"-malloc_limit_mb={MEMORY_MB}", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], read)
        atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"give a reader: {', '.join(map(repr, TARGETS))}")
    warnings.simplefilter("ignore")
    fuzz(sys.argv[1], sys.argv[2:])
