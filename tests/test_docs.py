"""The documentation is whole: every page has its place, the reference is that of this source, and the README stays short."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def module(file: Path):
    """A file of Python that lies in no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{file.stem}", file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def pages(nav) -> list[str]:
    """All pages of a nav, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages(entry)]


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    pictures = [ROOT / picture for picture in re.findall(r"!\[[^\]]+\]\((.*?)\)", text)]
    assert len(pictures) >= 3 and sum(picture.stat().st_size for picture in pictures) < 600_000


def test_every_page_has_one_place_in_the_nav_and_every_place_has_its_page():
    hook = module(DOCS / "hook.py")
    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert all((ROOT / source).is_file() for source in hook.PAGES)
    assert sorted(nav) == sorted(there | {place for place in hook.PAGES.values() if place.endswith(".md")})


@pytest.mark.parametrize(
    ("source", "place", "link", "mended"),
    [
        ("docs/models/index.md", "models/index.md", "[any](../../brainseg_jax/pretrained/any.md)", "[any](any.md)"),
        ("brainseg_jax/pretrained/any.md", "models/any.md", "[gpu](../../docs/benchmarks/gpu.md)", "[gpu](../benchmarks/gpu.md)"),
        ("docs/paper.md", "paper.md", "[start](../README.md)", "[start](index.md)"),
        ("CONTRIBUTING.md", "developers/contributing.md", "[add](docs/developers/adding.md#x)", "[add](adding.md#x)"),
        ("docs/paper.md", "paper.md", "[CITATION.cff](../CITATION.cff)", "CITATION.cff"),
        ("docs/paper.md", "paper.md", "[gone](gone.md)", "[gone](gone.md)"),
        ("docs/paper.md", "paper.md", "[out](https://example.org)", "[out](https://example.org)"),
    ],
)
def test_links_are_mended_for_the_site(source, place, link, mended):
    hook = module(DOCS / "hook.py")
    assert hook.LINK.sub(lambda found: hook.mended(found, source, place), link) == mended


def test_the_reference_is_that_of_this_source(tmp_path):
    assert module(ROOT / "scripts" / "reference.py").write(tmp_path) == 0
    for page in sorted(tmp_path.iterdir()):
        assert page.read_text() == (DOCS / "reference" / page.name).read_text(), f"{page.name}: run python scripts/reference.py"


def test_no_document_names_a_place_of_one_machine():
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        assert not re.search(r"/(root|tmp|work|home)/", page.read_text()), page
