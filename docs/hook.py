"""What mkdocs does beside building docs/: model cards and other files of the repository become pages, and links between them are mended."""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Files outside docs/ that the site has, and where.
PAGES = {
    "brainseg_jax/pretrained/any.md": "models/any.md",
    "brainseg_jax/pretrained/t1.md": "models/t1.md",
    "brainseg_jax/pretrained/swin_ssl.md": "models/swin_ssl.md",
    "brainseg_jax/pretrained/NOTICE.md": "models/notice.md",
    "brainseg_jax/pretrained/NOTICE_any.md": "models/notice_any.md",
    "brainseg_jax/pretrained/LICENSE_NiChart.txt": "models/LICENSE_NiChart.txt",
    "CONTRIBUTING.md": "developers/contributing.md",
    "SECURITY.md": "developers/security.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the pages that lie outside docs/."""
    from mkdocs.structure.files import File

    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of a page as the site has them: what is no page of it stays as text."""
    place = page.file.src_uri
    source = next((source for source, other in PAGES.items() if other == place), f"docs/{place}")
    return LINK.sub(lambda link: mended(link, source, place), markdown)


def mended(link, source, place):
    """A link of the file `source` as it has to be on the page `place`."""
    text, target, anchor = link[1], link[2], link[3] or ""
    if re.match(r"[a-z]+:", target):
        return link[0]
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if file.startswith("docs/"):
        there = file.removeprefix("docs/")
    elif file in PAGES:
        there = PAGES[file]
    elif file == "README.md":
        there = "index.md"
    else:
        return text if (ROOT / file).exists() else link[0]
    return f"[{text}]({posixpath.relpath(there, posixpath.dirname(place) or '.')}{anchor})"
