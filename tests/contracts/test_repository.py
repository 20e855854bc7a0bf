"""What is committed, and what must not be. Read in a git checkout alone."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")

# Folders of somebody's machine. `/tmp`, `/var/lib/holdfast` and the like are the same everywhere.
MACHINE = re.compile(
    rb"(?:^|[\s\"'`(=:\[])/(?:work|home/\w+|Users/\w+|root|opt/\w+|mnt|private/var)/[\w.]", re.MULTILINE
)
INDEX = re.compile(
    rb"(?:--?(?:extra-)?index(?:-url)?|index-url|find-links|default-index)[ =]+[\"']?https?://"
    rb"|https?://[^\s\"')>]*/simple\b|files\.pythonhosted|pypi\.org/simple|artifactory|nexus|devpi",
    re.IGNORECASE,
)
CHECKS = "tests/contracts/test_repository.py"


@cache
def tracked() -> dict[str, bytes]:
    """Every tracked file that is there, with its content; links are left out, as what they lead to is tracked."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    paths = [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]
    return {str(p.relative_to(ROOT)): p.read_bytes() for p in paths if p.is_file() and not p.is_symlink()}


def naming(pattern: re.Pattern[bytes]) -> list[str]:
    """Where the pattern occurs, as `file:line`."""
    return [
        f"{name}:{number}"
        for name, content in tracked().items()
        if name != CHECKS
        for number, line in enumerate(content.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_files_are_tracked():
    assert {"pyproject.toml", "requirements.lock", "contracts/errors.py"} <= tracked().keys()


def test_no_file_names_a_folder_of_somebodys_machine():
    assert naming(MACHINE) == []


def test_no_file_names_a_package_index():
    assert naming(INDEX) == []


@pytest.mark.parametrize(
    "line", [b" /home/ana/project/x.py", b'"/work' + b"/main/a", b"(/Users/ana/x)", b"=/root" + b"/.venv/bin"]
)
def test_a_machines_folder_would_be_found(line: bytes):
    assert MACHINE.search(line)


@pytest.mark.parametrize("line", [b"--index-url https://mirror.example/x", b"https://mirror.example/simple/a"])
def test_an_index_would_be_found(line: bytes):
    assert INDEX.search(line)


def test_the_lock_holds_hashes_and_no_addresses():
    lock = tracked()["requirements.lock"].decode()
    assert "://" not in lock
    pinned = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE).strip())
    assert len(pinned) > 50
    for requirement in pinned:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+", requirement), requirement.splitlines()[0]
        assert "--hash=sha256:" in requirement, requirement.splitlines()[0]


def test_every_dependency_is_in_the_lock():
    declared = set(
        re.findall(r'"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[\w,]+\])?[<>=~]', tracked()["pyproject.toml"].decode())
    )
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", tracked()["requirements.lock"].decode(), re.MULTILINE))
    assert declared
    assert {name.lower() for name in declared} - {"setuptools"} <= locked


def test_the_licence_is_there():
    assert b"Apache License" in tracked()["LICENSE"]
    assert 'license = "Apache-2.0"' in tracked()["pyproject.toml"].decode()


def test_make_help_lists_every_target():
    makefile = tracked()["Makefile"].decode()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make ([a-z-]+) ", shown)) == targets
    assert targets >= {"setup", "demo", "test", "lint", "types", "check", "bench", "notebooks"}


def test_make_without_a_target_shows_the_help():
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout == helped


@pytest.mark.parametrize(
    "name", [name for name in tracked() if name.endswith(".md")] if (ROOT / ".git").exists() else []
)
def test_links_between_documents_lead_somewhere(name: str):
    text = tracked()[name].decode()
    here = (ROOT / name).parent
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    assert [link for link in links if not (here / link).exists()] == []


def test_the_rooms_are_linked_relatively():
    rooms = [path for path in (ROOT / "holdfast").iterdir() if path.is_symlink()]
    assert len(rooms) == 10
    for room in rooms:
        assert room.readlink() == Path("..") / room.name


def test_nothing_secret_looking_is_committed():
    secret = re.compile(
        rb"\b(?:sk-[A-Za-z0-9]{32,}|ghp_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY)"
    )
    assert naming(secret) == []


def test_no_file_is_large():
    assert [name for name, content in tracked().items() if len(content) > 1_000_000] == []
