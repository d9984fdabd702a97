"""The dependencies that setup.cfg states are those that the code imports."""

import ast
import configparser
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "trainer", "evaluation")
# Files of the packages that an extra of its own is for.
FILES_OF_EXTRAS = {
    "import": [ROOT / "trainer" / "import_encoder.py", *(ROOT / "trainer" / "importing").glob("*.py")],
    "onnx": [ROOT / "trainer" / "export_encoder.py", ROOT / "trainer" / "exporting" / "onnx.py"],
    "mteb": [ROOT / "evaluation" / "mteb.py"],
}
# Used without an import: the command `tensorboard`, the excerpt of Wikipedia inside gensim, TensorFlow, with which
# TensorFlow Datasets reads files, and SentencePiece, with which transformers reads tokenizers.
NOT_IMPORTED = {"tensorboard", "gensim", "tensorflow-cpu", "sentencepiece"}
# Imported where they are there: another package brings triton, and `make setup-gcp` Google's client libraries.
NEVER_STATED = {"triton", "google"}
# Lies in the namespace of orbax-checkpoint, and nothing here imports it; jax2onnx brings it.
SHARES_A_NAMESPACE = {"orbax-export"}


def requirements(extra: str | None) -> dict[str, Requirement]:
    """Returns what an extra (None: no extra) asks for, by distribution; extras that it refers to are followed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    section, key = ("options.extras_require", extra) if extra else ("options", "install_requires")
    found: dict[str, Requirement] = {}
    for line in config[section][key].splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.name == "mofi":
            for other in sorted(requirement.extras):
                found |= requirements(other)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imports(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_file(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    if path.is_dir():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def imported_distributions(files: Iterable[Path]) -> dict[str, str]:
    """Returns the distributions that files import, directly and through other files of this project, with one file."""
    by_module = importlib.metadata.packages_distributions()
    waiting, seen, found = list(files), set(), {}
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in imports(file):
            top = name.split(".")[0]
            if top in PACKAGES:
                own = module_file(name)
                if own is not None:
                    # Importing a module runs the __init__ of each package above it.
                    waiting += [own, *(p / "__init__.py" for p in own.parents if p.is_relative_to(ROOT) and p != ROOT)]
            elif top not in sys.stdlib_module_names and top not in NEVER_STATED:
                for distribution in by_module.get(top, [top]):
                    found.setdefault(canonicalize_name(distribution), str(file.relative_to(ROOT)))
    return {name: file for name, file in found.items() if name not in SHARES_A_NAMESPACE}


def own_files(package: str) -> list[Path]:
    """Returns the files of a package without those that an extra of their own is for."""
    others = {path for files in FILES_OF_EXTRAS.values() for path in files}
    return [p for p in (ROOT / package).rglob("*.py") if "demo" not in p.relative_to(ROOT).parts and p not in others]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_states_what_it_imports(package):
    files = own_files(package)
    stated = {**requirements(None), **requirements(package)}
    missing = {name: file for name, file in imported_distributions(files).items() if name not in stated}
    assert not missing, f"setup.cfg does not state these for [{package}]; name: a file that imports it"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_states_nothing_else(package):
    files = own_files(package)
    unused = requirements(package).keys() - imported_distributions(files).keys() - NOT_IMPORTED
    assert not unused, f"setup.cfg states these for [{package}], and nothing imports them"


def test_the_demo_states_what_it_imports():
    files = [p for package in PACKAGES for p in (ROOT / package).glob("demo/**/*.py")]
    stated = {**requirements(None), **requirements("demo")}
    missing = {name: file for name, file in imported_distributions(files).items() if name not in stated}
    assert not missing


@pytest.mark.parametrize("extra", FILES_OF_EXTRAS)
def test_an_extra_states_what_its_files_import_and_nothing_else(extra):
    stated = requirements(extra)
    found = imported_distributions(FILES_OF_EXTRAS[extra])
    assert not {name: file for name, file in found.items() if name not in {**requirements(None), **stated}}
    of_packages = {name for package in PACKAGES for name in requirements(package)}
    assert not stated.keys() - found.keys() - NOT_IMPORTED - of_packages


def test_tests_and_infra_state_what_they_import():
    files = [p for folder in ("tests", "infra") for p in (ROOT / folder).rglob("*.py")]
    stated = {**requirements(None), **requirements("dev")}
    own = {canonicalize_name(p.stem) for p in files} | {
        "tests",
        "infra",
        "synthetic",
    }  # the last one is a folder of benchmarks
    missing = {
        name: file for name, file in imported_distributions(files).items() if name not in stated and name not in own
    }
    assert not missing


def test_the_lock_holds_every_stated_dependency():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    locked = {canonicalize_name(line.split("==")[0]): line for line in lines if "==" in line}
    wanted = {**requirements(None), **requirements("all")}
    for name, requirement in wanted.items():
        assert name in locked, f"requirements.txt lacks {name}; run make lock"
        version = locked[name].split("==")[1].split()[0]
        assert requirement.specifier.contains(version), f"{name} {version} is locked, setup.cfg asks for {requirement}"


def locked(path: Path) -> dict[str, set[str]]:
    """Returns the versions of each distribution in a lock: several where they depend on Python or system."""
    found: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        if "==" in line and not line.startswith(" "):
            requirement = Requirement(line.removesuffix(" \\"))
            found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


@pytest.mark.parametrize(("accelerator", "brings"), [("cuda13", "jax-cuda13-plugin"), ("tpu", "libtpu")])
def test_an_accelerator_changes_no_version_that_is_locked_for_the_cpu(accelerator, brings):
    of_cpu = locked(ROOT / "requirements.txt")
    added = locked(ROOT / "infra" / "accelerators" / f"{accelerator}.txt")
    assert brings not in of_cpu and {"jax", "jaxlib", brings} <= set(added)
    assert {name: versions for name, versions in added.items() if versions != of_cpu.get(name, versions)} == {}


def test_an_encoder_is_read_with_the_base_install_alone():
    """Every module of a distribution outside the closure of install_requires is hidden, then an encoder is loaded."""
    closure: set[str] = set()
    waiting = list(requirements(None))
    while waiting:
        name = waiting.pop()
        if name in closure:
            continue
        closure.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    hidden = sorted(
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module not in PACKAGES and not closure & {canonicalize_name(d) for d in distributions}
    )
    assert {"apache_beam", "tensorflow", "torch", "flax"} <= set(hidden)
    program = f"""
import sys
sys.modules.update(dict.fromkeys({hidden!r}))  # importing a name that maps to None fails
from PIL import Image
import numpy as np
from trainer.encoder import Encoder
encoder = Encoder.load({str(ROOT / "tests/trainer/golden/encoder")!r})
print(encoder.embed_images(encoder.preprocess(Image.new("RGB", (50, 30)))[np.newaxis]).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 3)\n"
