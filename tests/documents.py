"""What stands in the documents: their tables, and what they put between backticks."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_CELLS = re.compile(r"(?<!\\)\|")
_TICKS = re.compile(r"`([^`]+)`")


def text(name: str) -> str:
    """A document of `docs`, or of the top folder."""
    folder = ROOT if (ROOT / name).exists() else DOCS
    return (folder / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """What stands in a document below a heading, up to the next one of its level or above."""
    document = text(name)
    start = re.search(rf"^(#+) {re.escape(heading)}\s*$", document, re.MULTILINE)
    assert start is not None, f"{name} has no section {heading!r}"
    rest = document[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(markdown: str) -> list[list[str]]:
    """The rows of all tables in a text, without their heads, each as its cells."""
    found: list[list[str]] = []
    head = True
    for line in markdown.splitlines():
        if not line.startswith("|"):
            head = True
        elif re.fullmatch(r"[|: -]+", line):
            head = False
        elif not head:
            found.append([cell.strip().replace(r"\|", "|") for cell in _CELLS.split(line.strip().strip("|"))])
    return found


def ticked(markdown: str) -> list[str]:
    """What stands between backticks."""
    return _TICKS.findall(re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language in a document; "" for those that name none."""
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text(name), re.DOTALL | re.MULTILINE)
    return [fence[2] for fence in fences if fence[1] == language]
