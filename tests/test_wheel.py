"""What a user installs: the wheel and the sdist, and the tests of the sdist against the wheel."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import aiobus

ROOT = Path(__file__).parents[1]
IS_CHECKOUT = (ROOT / "aiobus").is_dir()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not IS_CHECKOUT, reason="the package is installed already"),
]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTS = shlex.split(
    os.environ.get("WHEEL_TESTS")
    or "-m 'not slow' tests/test_exports.py tests/test_contract.py tests/test_typed.py"
    " tests/test_cli_app.py"
)
"""What runs against the wheel; CI elsewhere has the time for `tests`, which is all."""

GUARD = """
import aiobus, sysconfig
from pathlib import Path

def pytest_report_header():
    where = Path(aiobus.__file__)
    assert where.is_relative_to(sysconfig.get_path("purelib")), where
    return f"aiobus is the installed one: {where}"
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints. It sees no PYTHONPATH, where the checkout might be."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it, in environments of their own."""
    made = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", made, ROOT, cwd=made)
    return made


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def sdist(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked."""
    (path,) = dist.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(path) as opened:
        opened.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "aiobus").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert inside == tracked
    assert "aiobus/py.typed" in inside


def test_the_wheel_is_for_every_system_and_carries_the_license(wheel: zipfile.ZipFile) -> None:
    assert (wheel.filename or "").endswith("-py3-none-any.whl")
    (name,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_metadata_of_the_wheel_is_that_of_the_project(wheel: zipfile.ZipFile) -> None:
    told = metadata(wheel)
    assert (told["Name"], told["Version"]) == (PROJECT["name"], aiobus.__version__)
    assert told["Requires-Python"] == PROJECT["requires-python"]
    assert told["License-Expression"] == PROJECT["license"]
    assert set(told.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert told.get_all("Classifier") == PROJECT["classifiers"]
    plain = [each for each in told.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert sorted(plain) == sorted(PROJECT["dependencies"])


def test_an_index_can_show_its_description(wheel: zipfile.ZipFile) -> None:
    told = metadata(wheel)
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload() == (ROOT / "README.md").read_text()


def test_the_sdist_has_what_its_tests_need_and_no_file_that_is_not_in_the_repository(
    sdist: Path,
) -> None:
    inside = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file()}
    listed = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    ).stdout.split("\n")
    if listed != [""]:  # there is no git in an unpacked sdist
        assert inside - {"PKG-INFO"} <= set(listed)
    for folder in ("aiobus", "tests", "examples", "docs", "perf"):
        assert {name for name in listed if name.startswith(f"{folder}/")} <= inside


@pytest.fixture(scope="module")
def python(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel and what its tests need."""
    home = tmp_path_factory.mktemp("home")
    (path,) = dist.glob("*.whl")
    run(sys.executable, "-m", "venv", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"aiobus-zmq[dev] @ {path.as_uri()}", cwd=home)
    return python


def test_the_tests_of_the_sdist_pass_against_the_installed_wheel(python: Path, sdist: Path) -> None:
    (sdist / "aiobus").rename(sdist / "not-to-be-imported")
    (sdist / "tests" / "installed.py").write_text(GUARD)
    said = run(
        python.with_name("pytest"), "-p", "installed", "-n", "auto", *TESTS,
        cwd=sdist, PYTHONPATH=str(sdist / "tests"),
    )  # fmt: skip
    assert "aiobus is the installed one: " in said
    assert re.search(r"\d{2,} passed", said), said
