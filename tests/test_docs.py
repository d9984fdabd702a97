"""Links between the Markdown files lead somewhere, and the commands that they show exist."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(line.lstrip("#")) for line in FENCE.sub("", page.read_text()).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.is_file(), f"{target} is not there"
        assert not anchor or anchor in anchors(other), f"{path} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    text = page.read_text()
    blocks = "\n".join(FENCE.findall(text)) + "\n" + "\n".join(re.findall(r"`[^`\n]+`", text))
    assert set(re.findall(r"(?:^|`|\s)make ([a-z][a-z0-9-]*)", blocks)) <= targets
    for module in re.findall(r"python -m ((?:pipeline|trainer|evaluation)[\w.]*)", blocks):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_repository_that_a_page_names_is_there(page):
    names = re.findall(r"(?<![\w/])(?:docs|evaluation|infra|pipeline|tests|trainer)/[\w./-]*\w", page.read_text())
    assert [name for name in names if not (ROOT / name).exists() and not (page.parent / name).exists()] == []


def results_of(code: str) -> list[object]:
    """Runs the code and returns the value of each line that is an expression."""
    scope, values = {}, []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            values.append(eval(compile(ast.Expression(node.value), "page", "eval"), scope))
        else:
            exec(compile(ast.Module([node], []), "page", "exec"), scope)
    return values


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md", "docs/using.md"])
def test_the_code_that_uses_an_encoder_runs_as_it_is_written(page, tmp_path, monkeypatch):
    for name in ("runs/mine/encoder", "runs/demo/models/multitask/encoder"):
        shutil.copytree(ROOT / "tests/trainer/golden/encoder", tmp_path / name)
    for name in ("a.jpg", "b.png", "apple.png"):
        Image.new("RGB", (9, 7), (200, 30, 10)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?trainer\.encoder.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    results = results_of(code)
    if page == "docs/using.md":
        pictures, texts, (classes,) = results
        assert pictures.shape == (2, 3) and texts.shape == (1, 3)
        np.testing.assert_allclose(np.linalg.norm(pictures, axis=1), 1, atol=1e-6)
        assert {prediction.entity_id for prediction in classes} == {"Q1", "Q2"}
        assert sum(prediction.probability for prediction in classes) == pytest.approx(1)
