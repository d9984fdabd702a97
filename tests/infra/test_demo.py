import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The driver, with two steps: `one` appends a line to a file, `two` counts the lines of that file."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "infra" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
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
            ),
        ),
    )
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path / "out")])
    monkeypatch.chdir(tmp_path)
    return module, tmp_path


def test_a_second_run_repeats_no_step_and_prints_the_table(demo, capfd):
    module, path = demo
    assert module.main() == 0
    capfd.readouterr()
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "x"
    assert capfd.readouterr().out == "[1/2] one:  (up to date)\n[2/2] two:  (up to date)\ntable\n"


def test_changed_code_repeats_its_step_from_nothing_and_those_after_it(demo):
    module, path = demo
    module.main()
    (path / "code/one.py").write_text((path / "code/one.py").read_text().replace("'x'", "'yyy'"))
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "yyy"
    assert (path / "out/two/count").read_text() == "3"


def test_a_step_that_was_killed_goes_on_with_what_it_left(demo):
    module, path = demo
    good = (path / "code/one.py").read_text()
    (path / "code/one.py").write_text(good + "; sys.exit(not os.path.exists(sys.argv[1] + '/../mended'))")
    assert module.main() == 1
    assert not (path / "out/steps/one.json").exists()
    (path / "out/mended").touch()
    assert module.main() == 0
    assert (path / "out/one/lines").read_text() == "xx"
    assert json.loads((path / "out/steps/one.json").read_text())["step"] == "one"


def test_a_missing_npm_is_named_in_one_line(demo, monkeypatch, capfd):
    module, _ = demo
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module.main() == 2
    error = capfd.readouterr().err
    assert error.startswith("error: npm is missing; install Node.js") and error.count("\n") == 1


def test_a_missing_python_is_named_in_one_line(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.txt", "setup.cfg", "pyproject.toml"):
        (tmp_path / name).touch()
    done = subprocess.run(["make", "setup", "PYTHON=python9"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: 'python9' is missing; install Python 3.11, 3.12 or 3.13, or name one with PYTHON="
    )
