"""What GitHub runs: on each Python and system that the project names, with commands that exist."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: Path) -> Any:
    # YAML 1.1 takes `on` for true.
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)


CI = read(ROOT / ".github" / "workflows" / "ci.yml")
JOBS = [(path.name, name, job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_every_python_that_the_project_names_is_tested_on_linux_and_macos() -> None:
    named = [
        version
        for each in PROJECT["classifiers"]
        if (version := each.rpartition(" :: ")[2]).startswith("3.")
    ]
    matrix = CI["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert {each.partition("-")[0] for each in matrix["os"]} == {"ubuntu", "macos"}


def test_it_checks_it_runs_every_test_and_it_tests_the_wheel() -> None:
    told = {line for _, _, job in JOBS for line in commands(job)}
    assert {"make check", "make test", "make test-slow", "make wheel-test"} <= told


def test_every_target_that_it_makes_is_one_of_the_makefile() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = [line for _, _, job in JOBS for line in commands(job)]
    told += (ROOT / ".ci" / "run").read_text().splitlines()
    made = {name for line in told for name in re.findall(r"^(?:exec )?make (.+)$", line)}
    assert made
    assert {target for targets in made for target in targets.split()} <= known


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_a_job_ends_in_time_and_may_only_read(file: str, name: str, job: dict[str, Any]) -> None:
    assert 0 < int(job["timeout-minutes"]) <= 60
    assert "permissions" not in job  # so those of the file, which are the least
    assert read(ROOT / ".github" / "workflows" / file)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_an_action_is_of_github_and_of_a_stated_major_version(
    file: str, name: str, job: dict[str, Any]
) -> None:
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize(("file", "name", "job"), JOBS)
def test_what_a_job_takes_from_its_matrix_is_there(
    file: str, name: str, job: dict[str, Any]
) -> None:
    used = set(re.findall(r"\$\{\{ matrix\.([\w-]+) \}\}", str(job)))
    assert used == set(job.get("strategy", {}).get("matrix", {}))
