"""The driver of the demo: what is skipped, resumed and repeated, and its messages."""

from __future__ import annotations

import ast
import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.storage.file_lock import folder_lock

ROOT = Path(__file__).resolve().parents[2]
Demo = tuple[ModuleType, Path]  # the driver, and the folder that it works in


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "infra" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo(driver: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Demo:
    """The driver, with two steps: `one` appends a line to a file, `two` counts the lines of that file."""
    module = driver
    code = tmp_path / "code"
    code.mkdir()
    (code / "requirements.txt").touch()
    (code / "one.py").write_text(
        "import os, sys; os.makedirs(sys.argv[1], exist_ok=True); open(sys.argv[1] + '/lines', 'a').write('x')"
    )
    (code / "two.py").write_text(
        "import os, sys; os.makedirs(sys.argv[2], exist_ok=True); n = len(open(sys.argv[1] + '/lines').read());"
        "open(sys.argv[2] + '/count', 'w').write(str(n)); open(sys.argv[3], 'w').write('table\\n')"
    )
    monkeypatch.setattr(module, "ROOT", code)
    monkeypatch.setattr(
        module,
        "STEPS",
        (
            module.Step(name="one", command="python one.py {out}/one", output="one", code=("one.py",)),
            module.Step(
                name="two",
                command="python two.py {out}/one {out}/two {out}/table.txt",
                output="two",
                code=("two.py",),
                after=("one",),
                also=("table.txt",),
            ),
        ),
    )
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    return module, tmp_path


def test_a_second_run_repeats_no_step_and_prints_the_table(demo: Demo, capfd: pytest.CaptureFixture[str]) -> None:
    module, path = demo
    assert module.main() == 0
    capfd.readouterr()
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "x"
    assert capfd.readouterr().out == "[1/2] one:  (up to date)\n[2/2] two:  (up to date)\ntable\n"


def test_a_second_demo_in_a_folder_is_refused_and_changes_nothing(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    (path / "out").mkdir()
    with folder_lock(str(path / "out"), command="make demo", option="--output"):
        assert module.main() == 2
        assert [one.name for one in (path / "out").iterdir()] == [".lock"]
    (line,) = capsys.readouterr().err.splitlines()
    owner = f"make demo (process {os.getpid()} on "
    assert line.startswith(f"error: --output {path}/out is in use by {owner}") and "; wait until" in line
    assert module.main() == 0
    assert not (path / "out" / ".lock").exists()


def test_changed_code_repeats_its_step_from_nothing_and_those_after_it(demo: Demo) -> None:
    module, path = demo
    module.main()
    (path / "code/one.py").write_text((path / "code/one.py").read_text().replace("'x'", "'yyy'"))
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "yyy"
    assert (path / "out/two/count").read_text() == "3"


def test_a_step_that_was_killed_resumes_from_what_it_left(demo: Demo) -> None:
    module, path = demo
    good = (path / "code/one.py").read_text()
    (path / "code/one.py").write_text(good + "; sys.exit(not os.path.exists(sys.argv[1] + '/../repaired'))")
    assert module.main() == 1
    assert not (path / "out/steps/one.json").exists()
    (path / "out/repaired").touch()
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "xx"
    assert json.loads((path / "out/steps/one.json").read_text())["step"] == "one"


def test_what_else_wrote_or_removed_a_steps_files_makes_it_run_again(demo: Demo) -> None:
    module, path = demo
    module.main()
    (path / "out/one/lines").write_text("another")
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "x"
    shutil.rmtree(path / "out/one")
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "x"


def test_a_table_that_was_removed_is_made_again(demo: Demo, capfd: pytest.CaptureFixture[str]) -> None:
    module, path = demo
    module.main()
    (path / "out/table.txt").unlink()
    assert module.main() == 0
    assert (path / "out/table.txt").read_text() == "table\n"


def test_a_folder_with_a_space_in_its_name_serves(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = demo
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", "my out"])
    assert module.main() == 0
    assert (path / "my out/two/count").read_text() == "1"


def test_a_disk_that_fills_up_is_reported_in_one_line(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, _ = demo

    def full(path: Path, record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    assert module.main() == 2
    error = capfd.readouterr().err
    assert error.startswith("error: --output ") and "No space left on device" in error and error.count("\n") == 1


def test_a_step_sets_variables_that_the_environment_does_not(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    module, folder = demo
    (folder / "code" / "one.py").write_text(
        "import os, sys; os.makedirs(sys.argv[1]); open(sys.argv[1] + '/lines', 'w').write(os.environ['A_SETTING'])"
    )
    step = dataclasses.replace(module.STEPS[0], environment={"A_SETTING": "of the step"})
    monkeypatch.setattr(module, "STEPS", (step, module.STEPS[1]))
    assert module.main() == 0
    assert (folder / "out" / "one" / "lines").read_text() == "of the step"
    monkeypatch.setenv("A_SETTING", "of the user")
    shutil.rmtree(folder / "out")
    assert module.main() == 0
    assert (folder / "out" / "one" / "lines").read_text() == "of the user"


def test_training_asks_for_large_pages_as_make_train_does(driver: ModuleType) -> None:
    trainings = [step for step in driver.STEPS if "trainer.train" in step.command]
    assert len(trainings) == 4 and all(step.environment == driver.LARGE_PAGES for step in trainings)
    [stated] = driver.LARGE_PAGES.items()
    assert f"train: export {stated[0]} ?= {stated[1]}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_record_that_was_cut_short_is_ignored(demo: Demo) -> None:
    module, path = demo
    module.main()
    (path / "out/steps/one.json").write_text('{"step": "o')
    assert module.main() == 0
    assert json.loads((path / "out/steps/one.json").read_text())["step"] == "one"


def test_the_seconds_of_a_stopped_run_count_too(demo: Demo) -> None:
    module, path = demo
    good = (path / "code/one.py").read_text()
    (path / "code/one.py").write_text(good + "; import time; time.sleep(0.5); sys.exit(not os.path.exists('repaired'))")
    module.main()
    (path / "code/repaired").touch()
    assert module.main() == 0
    assert json.loads((path / "out/steps/one.json").read_text())["seconds"] >= 1.0


# Waits at most ten seconds for the file that the second argument names, and makes the one that the first names.
MEET = """
import os, sys, time
os.makedirs(sys.argv[1])
print(sys.argv[1][-1], "waits")
for _ in range(1000):
    if os.path.exists(sys.argv[2]):
        break
    time.sleep(0.01)
else:
    sys.exit(7)
"""


def pair_of_steps(module: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps `a` and `b`, each of which ends once the other has begun, and `c` after `b`."""
    (path / "code/meet.py").write_text(MEET)

    def step(name: str, other: str, after: tuple[str, ...] = ()) -> Any:
        command = f"python code/meet.py {{out}}/{name} {{out}}/{other}"
        return module.Step(name=name, command=command, output=name, code=("meet.py",), after=after)

    monkeypatch.setattr(module, "ROOT", path)
    (path / "requirements.txt").touch()
    monkeypatch.setattr(module, "STEPS", (step("a", "b"), step("b", "a"), step("c", "b", after=("b",))))
    (path / "out").mkdir()
    (path / "out" / "table.txt").write_text("table\n")


def test_two_steps_that_do_not_need_each_other_run_at_once(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    pair_of_steps(module, path, monkeypatch)
    assert module.main() == 0
    output = capfd.readouterr().out.splitlines()
    # The first may have been alone when it printed.
    assert {line.removeprefix("a: ").removeprefix("b: ") for line in output if line.endswith("waits")} == {
        "a waits",
        "b waits",
        "c waits",
    }
    spans = {name: json.loads((path / f"out/steps/{name}.json").read_text())["spans"][0] for name in "abc"}
    assert spans["a"][0] <= spans["b"][1] <= spans["c"][0] <= spans["c"][1]


def test_after_a_step_that_failed_the_one_beside_it_ends_and_none_starts(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    pair_of_steps(module, path, monkeypatch)
    (path / "code/meet.py").write_text(MEET + "sys.exit(3 * (sys.argv[1][-1] == 'b'))")
    assert module.main() == 3
    assert capfd.readouterr().err == "error: step b ended with exit status 3; fix the cause, then run `make demo`\n"
    assert (path / "out/steps/a.json").exists() and not (path / "out/steps/b.json").exists()
    assert not (path / "out/c").exists()


def test_a_stop_ends_both_steps_and_says_how_to_go_on(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    pair_of_steps(module, path, monkeypatch)
    (path / "code/meet.py").write_text(MEET + "time.sleep(60)")

    def stopped(futures: Any, return_when: str) -> None:
        while not all((path / "out" / name).exists() for name in "ab"):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(module.concurrent.futures, "wait", stopped)
    assert module.main() == 130
    assert capfd.readouterr().err.endswith("\nstopped in step a, b; `make demo` resumes here\n")
    assert not (path / "out/steps/a.json").exists() and (path / "out/steps/a.started").exists()


def test_of_a_progress_bar_the_last_state_is_printed(demo: Demo, capfd: pytest.CaptureFixture[str]) -> None:
    module, path = demo
    code = (path / "code/one.py").read_text()
    (path / "code/one.py").write_text(code + "; sys.stderr.write('\\r1 of 2\\r2 of 2\\ndone')")
    assert module.main() == 0
    assert capfd.readouterr().out.splitlines()[1:3] == ["2 of 2", "done"]


def test_until_runs_a_step_and_those_that_it_needs(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--until", "one"])
    assert module.main() == 0
    assert (path / "out/one").exists() and not (path / "out/two").exists()
    capfd.readouterr()
    assert module.main() == 0
    assert capfd.readouterr().out == "[1/2] one:  (up to date)\n"


def test_an_output_that_cannot_be_made_is_reported_in_one_line(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, path = demo
    (path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(path / "file" / "out")])
    assert module.main() == 2
    problem = "cannot be written (Not a directory); free some space, or choose another"
    assert capfd.readouterr().err == f"error: --output {path}/file/out {problem}\n"


def imported(module: str, seen: set[Path]) -> set[Path]:
    """Returns the files of this repository that `module` imports, itself and what they import included."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:length])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists() and file not in seen:
                seen.add(file)
                for node in ast.walk(ast.parse(file.read_text())):
                    if isinstance(node, ast.Import):
                        names = [alias.name for alias in node.names]
                    elif isinstance(node, ast.ImportFrom) and node.module:
                        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                    else:
                        continue
                    for name in names:
                        if name.split(".")[0] in ("pipeline", "trainer", "evaluation", "infra"):
                            imported(name, seen)
    return seen


def test_the_code_of_each_step_is_all_that_its_program_imports(driver: ModuleType) -> None:
    for step in driver.STEPS:
        words = step.command.split()
        if words[0] != "python":
            continue
        stated = {path for pattern in step.code for path in ROOT.glob(pattern)}
        program = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
        missing = imported(program, set()) - stated
        assert not missing, (step.name, sorted(str(path.relative_to(ROOT)) for path in missing))


def test_a_missing_npm_is_named_in_one_line(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module, _ = demo
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module.main() == 2
    error = capfd.readouterr().err
    assert error.startswith("error: npm is missing; install Node.js") and error.count("\n") == 1


def test_a_missing_python_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.txt", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "setup", "PYTHON=python9"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: 'python9' is missing; install Python 3.11, 3.12 or 3.13, or name one with PYTHON="
    )


def test_setup_does_not_empty_what_a_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.txt", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / "other" / "bin").mkdir(parents=True)
    (tmp_path / ".venv").symlink_to("other")
    done = subprocess.run(["make", "setup", f"PYTHON={sys.executable}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and (tmp_path / "other" / "bin").is_dir()
    assert done.stderr.startswith("error: .venv is a link, and setup would empty what it points to; remove the link\n")


def test_eval_takes_an_encoder_or_embeddings() -> None:
    def commands(*words: str) -> str:
        done = subprocess.run(["make", "-n", "-o", "setup", "eval", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout

    assert "--encoder 'mine'" in commands("ENCODER=mine") and "--embeddings" not in commands("ENCODER=mine")
    assert "--embeddings 'ready'" in commands("EMBEDDINGS=ready") and "--encoder" not in commands("EMBEDDINGS=ready")
    assert "models/multitask/encoder'" in commands()
    both = commands("EMBEDDINGS=ready", "ENCODER=mine")  # which the program refuses
    assert "--embeddings 'ready'" in both and "--encoder 'mine'" in both
