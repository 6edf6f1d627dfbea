"""What mkdocs calls while it builds the manual: the pages of reports are added, marks are filled, and links to files of
the repository that are no pages become plain text."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import pages  # noqa: E402

sys.path.pop(0)

LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """SECURITY.md and every report become pages."""
    files.append(File.generated(config, "security.md", abs_src_path=str(pages.ROOT / "SECURITY.md")))
    for file in sorted(pages.REPORTS.glob("*.md")):
        if file.stem == "README":
            continue
        text, pictures = pages.report_page(file.stem)
        files.append(File.generated(config, f"reports/{file.name}", content=text))
        for name, png in pictures.items():
            files.append(File.generated(config, f"reports/{name}", content=png))
    return files


def in_repository(page: str) -> str:
    """Where a page's text lies in the repository."""
    if page == "security.md":
        return "SECURITY.md"
    return f"bench/{page}" if page.startswith("reports/") else f"docs/{page}"


def in_site(path: str) -> str | None:
    """The page, or the file of one, that a file of the repository is."""
    if path == "SECURITY.md":
        return "security.md"
    for folder, place in (("bench/reports/", "reports/"), ("docs/", "")):
        if path.startswith(folder):
            return place + path.removeprefix(folder)
    return None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    own = page.file.src_uri
    folder, place = posixpath.dirname(in_repository(own)), posixpath.dirname(own)

    def link(found: re.Match[str]) -> str:
        words, target, part = found[1], found[2], found[3] or ""
        if files.get_file_from_path(posixpath.normpath(posixpath.join(place, target))) is not None:
            return found[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        to = in_site(path)
        if to is not None and files.get_file_from_path(to) is not None:
            return f"[{words}]({posixpath.relpath(to, place or '.')}{part})"
        # What is neither a page nor a file of the repository stays, and `--strict` names it.
        return words if (pages.ROOT / path).exists() else found[0]

    return LINK.sub(link, pages.fill(markdown))
