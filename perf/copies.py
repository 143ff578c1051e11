"""A copy of the package with the code that measures it, so that one run measures two packages.

Owns where a copy comes from: the package as it is here, or as it was at a commit. The code that
measures is always that of here. Must not know what is compared.
"""

import io
import shutil
import subprocess
import tempfile
import zipfile
from functools import cache
from pathlib import Path

__all__ = ["at", "copy", "is_known"]

ROOT = Path(__file__).parent.parent
PACKAGE = "aiobus"
MEASURING = ("perf", "examples")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "results")

_kept: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""


def is_known(commit: str) -> bool:
    """True when this clone has the commit. A shallow clone has not, nor has a tree without git."""
    try:
        found = subprocess.run(
            ["git", "cat-file", "-e", f"{commit}^{{commit}}"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return False
    return found.returncode == 0


def copy(folder: Path, commit: str = "") -> None:
    """Put the package and what measures it into `folder`. `commit`: the package as it was then."""
    for name in MEASURING:
        shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
    if not commit:
        shutil.copytree(ROOT / PACKAGE, folder / PACKAGE, ignore=LEFT_OUT)
        return
    archive = subprocess.run(
        ["git", "archive", "--format=zip", commit, PACKAGE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(folder)


@cache
def at(commit: str) -> Path:
    """A folder with the package as it was at `commit`. One for each commit and process."""
    _kept.append(tempfile.TemporaryDirectory(prefix="ab", ignore_cleanup_errors=True))
    folder = Path(_kept[-1].name)
    copy(folder, commit)
    return folder
