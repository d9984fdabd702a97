"""Breaks lines of chosen files, one at a time, and prints the changes that no test notices.

    make mutate FILES='trainer/losses/*.py'
    make mutate FILES=evaluation/compare.py TESTS=tests/evaluation/test_compare.py

mutmut makes the changes. It reads its files and tests from setup.cfg only and writes `mutants/` beside it, so it runs
in a copy of the packages and tests in a temporary folder, where this program writes the section `[mutmut]`. Nor does
it change functions with decorators: in the copy these are called after the function instead.
"""

from __future__ import annotations

import argparse
import ast
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PACKAGES = ("pipeline", "trainer", "evaluation")
ALSO = ("infra", "tests")
SECTION = """
[mutmut]
source_paths =
{sources}
only_mutate =
{files}
also_copy =
{also}
pytest_add_cli_args_test_selection =
{tests}
# JAX starts threads, and a process with threads must not be forked: workers come from a clean fork server.
process_isolation = forkserver
use_git_change_detection = False
# A mutant that loops for ever is ended after four times as long as its tests take and 20 seconds, which a busy machine
# needs.
timeout_multiplier = 4
timeout_constant = 5
"""
# Functions import it late, which takes seconds: the processes of mutants are forks of one that has it.
PRELOAD = "\nimport tensorflow  # noqa: E402, F401\n"


def tests_of(file: str) -> list[str]:
    """Returns the test file that mirrors `file`: `a/b/c.py` -> `tests/a/b/test_c.py`, else `tests/a/test_b.py`."""
    path = pathlib.PurePath(file)
    choices = [
        pathlib.PurePath("tests", path.parent, f"test_{path.stem}.py"),
        pathlib.PurePath("tests", path.parent.parent, f"test_{path.parent.name}.py"),
    ]
    for choice in choices:
        if os.path.exists(choice):
            return [str(choice)]
    sys.exit(f"error: {file} has no tests at {choices[0]} or {choices[1]}; name them with --tests")


def without_decorators(source: str) -> str:
    """Returns `source` with the decorators of functions and methods called after them: `f = functools.cache(f)`."""
    lines = source.splitlines()
    tops = ast.parse(source).body
    nodes = [*tops, *(one for top in tops if isinstance(top, ast.ClassDef) for one in top.body)]
    for node in sorted(nodes, key=lambda one: -one.lineno):  # from the end: the numbers of earlier lines stay
        if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
            continue
        decorators = [ast.unparse(one) for one in node.decorator_list]
        if decorators[0] in ("staticmethod", "classmethod"):  # mutmut knows these
            continue
        called = "".join(f"{one}(" for one in decorators) + node.name + ")" * len(decorators)
        lines.insert(node.end_lineno or 0, " " * node.col_offset + f"{node.name} = {called}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def is_cosmetic(changes: list[str]) -> bool:
    """Returns whether a difference changes the name of a step of Beam only, which people read."""
    without_names = [re.sub(r'(?<=\| )"\w+"(?= >>|$)', "", line[1:]) for line in changes]
    return len(changes) == 2 and without_names[0] == without_names[1]


def lines(values: list[str]) -> str:
    return "\n".join(f"    {value}" for value in values)


def main() -> None:
    """Runs mutmut and exits with 0 if every mutant is noticed, else with 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="Python files or globs of the packages, e.g. trainer/losses/*.py")
    parser.add_argument("--tests", nargs="+", help="test files to run; by default those that mirror the files")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants tested at once")
    options = parser.parse_args()
    files = [found for pattern in options.files for found in sorted(glob.glob(pattern)) or [pattern]]
    files = [file for file in files if not file.endswith("__init__.py")]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        sys.exit(f"error: {missing[0]} is missing; name files such as trainer/losses/*.py")
    tests = options.tests or sorted({test for file in files for test in tests_of(file)})
    with tempfile.TemporaryDirectory() as folder:
        for name in (*PACKAGES, *ALSO):
            shutil.copytree(name, os.path.join(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        with open(os.path.join(folder, "tests", "conftest.py"), "a") as conftest:
            conftest.write(PRELOAD)
        for file in files:
            copy = pathlib.Path(folder, file)
            copy.write_text(without_decorators(copy.read_text()))
        sources = sorted({file.partition("/")[0] for file in files})
        also = [name for name in (*PACKAGES, *ALSO) if name not in sources]
        section = SECTION.format(sources=lines(sources), files=lines(files), also=lines(also), tests=lines(tests))
        pathlib.Path(folder, "setup.cfg").write_text(pathlib.Path("setup.cfg").read_text() + section)
        mutmut = [sys.executable, "-m", "mutmut"]
        done = subprocess.run(
            [*mutmut, "run", "--max-children", str(options.jobs)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(done.stdout.replace("\r", "\n").splitlines()[-1] if done.returncode == 0 else done.stdout[-4000:])
        results = subprocess.run(
            [*mutmut, "results", "--all", "true"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout
        outcomes = [line.split(":") for line in results.splitlines() if ":" in line]
        num_alive = 0
        for name, outcome in outcomes:
            if outcome.strip() == "killed":
                continue
            shown = subprocess.run([*mutmut, "show", name.strip()], cwd=folder, capture_output=True, text=True).stdout
            changes = [line for line in shown.splitlines() if re.match(r"[+-](?![+-]{2})", line)]
            if is_cosmetic(changes):
                continue
            num_alive += outcome.strip() != "timeout"  # tests that do not end are noticed
            print(f"\n== {name.strip()}:{outcome}")
            print("\n".join(changes))
        print(f"\n{num_alive} of {len(outcomes)} mutants are not noticed")
    sys.exit(done.returncode or bool(num_alive))


if __name__ == "__main__":
    main()
