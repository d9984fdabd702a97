"""Links between the Markdown files lead somewhere, and the commands that they show exist."""

import re
from pathlib import Path

import pytest

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
