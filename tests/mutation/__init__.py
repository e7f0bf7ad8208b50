"""Mutation testing: change one place of the product at a time, and see whether a test notices.

`python -m tests.mutation` after `pip install -r tests/requirements-mutation.txt`; `--help` has the options.

1. Mutants are made by mutmut's operators (an operator exchanged, a number one higher, an argument left out)
   and drawn with a seed: the rooms in proportion to their lines of code, within a room at most one mutant a line until
   all lines have one. Not mutated: docstrings, annotations, imports, decorators, `__all__`, messages (what is raised,
   logged or printed, and help texts).
2. Once, each test runs under coverage.py, so that the tests that run a line are known, and how long they take; it is
   measured again only where a test file or the product changed.
3. A mutant meets the tests that run its line, in a copy of the tree: first those of test files that import its module,
   the fastest files first, those that together take no more than `--seconds` unmutated. A statement that runs on import
   meets the tests that run any of its class or file. What runs only in other processes, coverage does not see:
   `PROCESSES` in `cover.py` says which tests start them.

Tests run in children that are forked from one process that has imported PyTorch and the like, but nothing of ours.
"""
