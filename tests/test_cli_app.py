"""The command as a whole: its helps, its exit codes, what is wrong, and what it needs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import COMMAND, ENVIRONMENT, ROOT, called, ran, running

import aiobus
from aiobus.__main__ import main
from aiobus.cli import Story
from aiobus.cli.app import STORIES, made

PAGE = (ROOT / "docs" / "command.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tail", "desk"], "did you mean ipc://desk?"),
        (["tail", "inproc://"], "cannot be seen from another"),
        (["tail", "ipc://desk", "TRA DE"], "'TRA DE'"),
        (["tail", "ipc://desk", "TRADE/a*b"], "has a `*` that is not its end"),
        (["tail", "ipc://desk", "aiobus.gone"], "is never published"),
        (["tail", "ipc://desk", "--where", "price > 1"], "--where: 'price' is no name"),
        (["tail", "ipc://desk", "--since", "yesterday"], "--since 'yesterday': 'last', a time ago"),
        (["tail", "ipc://desk", "--since", "5"], "since=5.0: for the last 5 s, time.time() - 5"),
        (["tail", "ipc://desk", "--tz", "Mars"], "is no time zone"),
        (["tail", "ipc://desk", "-n", "0"], "Invalid value for '--n' / '-n'"),
        (["tail"], "no URL is given: give that of the desk first, such as ipc://desk"),
        (
            ["tail", "TRADE"],
            "'TRADE' is no URL: give that of the desk first, such as ipc://desk or",
        ),
        (["peers"], "or set AIOBUS_URL"),
        (["publish"], "or set AIOBUS_URL"),
        (["publish", "HALT", "{}"], "'HALT' is no URL"),
        (["publish", "ipc://desk", "HALT", "{}", "x"], "Got unexpected extra argument 'x'"),
        (["record", "no.db"], "'no.db' is no URL"),
        (["record", "ipc://desk"], "Missing argument 'FILE' behind the URL ipc://desk"),
        (["publish", "ipc://desk", "HALT", "{a: 1}"], "'{a: 1}' is no JSON: "),
        (["publish", "ipc://desk", "HALT", "NaN"], "is no JSON"),
        (["publish", "ipc://desk", "HALT", ""], "is no JSON"),
        (["publish", "ipc://desk", "HA LT", "{}"], "'HA LT' is not 1-64 characters"),
        (["publish", "ipc://desk", "aiobus.gap", "{}"], "are the bus's own"),
        (["publish", "ipc://desk", "HALT", "{}", "--key", "B*"], "has a `*`"),
        (["publish", "ipc://desk", "HALT", "{}", "--name", "a b"], "--name: 'a b' is not"),
        (["publish", "ipc://desk", "HALT"], "Missing argument 'JSON'"),
        (["record", "ipc://desk", "no.db", "--keep", "much"], "--keep 'much': bytes such as 10GB"),
        (["record", "ipc://desk", "no.db", "--sync", "never"], "--sync 'never': power or process"),
        (["record", "ipc://desk", "no.db", "--since", "x"], "--since 'x'"),
        (
            ["log", "no.db", "--json", "--verify"],
            "--json, --export and --verify exclude each other",
        ),
        (["peers", "ipc://"], "a URL such as ipc://desk"),
        (["doctor", "http://desk"], "a URL such as ipc://desk"),
        (["peers", "ipc://a b"], "a name of 1-64 characters"),
        (["demo", "--file", "README.md"], "is there already"),
        (["replay", "no.db", "strategy"], "a module and a function are needed"),
        (["bench", "--seconds", "x"], "Invalid value for '--seconds'"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_a_wrong_argument_is_named_and_the_code_is_2(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.delenv("AIOBUS_URL", raising=False)
    assert main(arguments) == 2
    out, errors = capsysbinary.readouterr()
    assert out == b""
    assert said in errors.decode()
    assert "Traceback" not in errors.decode()
    assert not (ROOT / "no.db").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["publish", "HALT"], "Missing argument 'JSON' behind the URL ipc://desk"),
        (["record"], "Missing argument 'FILE' behind the URL ipc://desk"),
        (["peers", "desk"], "'desk': a URL such as ipc://desk"),
        (["doctor", "desk"], "'desk': a URL such as ipc://desk"),
        (["tail", "http://desk"], "'http://desk': a URL such as ipc://desk"),
        (["tail", "TRA DE"], "'TRA DE'"),
    ],
)
def test_with_the_url_of_the_environment_the_first_word_is_one_if_it_looks_like_it(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.setenv("AIOBUS_URL", "ipc://desk")
    assert main(arguments) == 2
    assert said in capsysbinary.readouterr().err.decode()


@pytest.mark.parametrize("command", ["tail", "peers", "doctor"])
def test_a_url_of_the_environment_that_is_none_is_told_with_the_variable(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("AIOBUS_URL", "desk")
    assert main([command]) == 2
    errors = capsysbinary.readouterr().err.decode()
    assert "did you mean ipc://desk? (AIOBUS_URL is 'desk')" in errors


@pytest.mark.slow
async def test_each_command_that_joins_a_desk_takes_that_of_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is given goes before it."""
    monkeypatch.setitem(ENVIRONMENT, "AIOBUS_URL", url)
    async with aiobus.AsyncEventBus(url, name="risk") as bus:
        await bus.subscribe("HALT", print)
        code, out, errors = await ran("peers")
        assert (code, "risk" in out) == (0, True), errors
        code, out, errors = await ran("doctor", "--listen", "0")
        assert "risk: sends heartbeats" in out
        assert (await ran("publish", "HALT", "{}"))[0] == 0
        async with running("record", f"{tmp_path}/desk.db") as recorder:
            await recorder.says(f"recording {url} into {tmp_path}/desk.db")
            async with running("tail", "TRADE", "-n", "1") as tail:
                await tail.says("- risk: there already")
                await bus.publish(aiobus.Event("TRADE", 1))
                code, out, _ = await tail.ended()
                assert (code, " TRADE " in out) == (0, True)
    code, _, errors = await ran("peers", "ipc://nobody-is-here")
    assert (code, "nobody is at ipc://nobody-is-here" in errors) == (3, True)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_each_help_has_examples_of_its_command_and_its_exit_codes(
    capsys: pytest.CaptureFixture[str], story: Story
) -> None:
    assert main([story.name, "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"Usage: aiobus {story.name} ")
    examples = told.partition("Examples:")[2].partition("Exit codes:")[0]
    assert re.search(rf"^ +(.* \| )?aiobus {story.name}\b", examples, re.MULTILINE)
    for code in story.every_code:
        assert re.search(rf"^ +{code} +\w", told.partition("Exit codes:")[2], re.MULTILINE)
    assert max(map(len, told.splitlines())) <= 100


def test_the_version_is_told(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--version"]) == 0
    assert capsysbinary.readouterr().out == f"aiobus {aiobus.__version__}\n".encode()


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for story in STORIES:
        assert re.search(rf"^  {story.name} +\S", told, re.MULTILINE)
    assert main([]) == 2


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("aiobus.cli")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["tail", "ipc://desk"]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert errors == f"the command aiobus needs {missing}: pip install 'aiobus-zmq[cli]'\n"


def test_what_imports_aiobus_imports_no_library_of_the_command() -> None:
    code = "import sys, aiobus; print({'typer', 'rich', 'aiobus.cli'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_the_command_is_completed_in_a_shell() -> None:
    asked = {**ENVIRONMENT, "_AIOBUS_COMPLETE": "complete_bash", "COMP_WORDS": "aiobus p"}
    done = subprocess.run(
        COMMAND, env={**asked, "COMP_CWORD": "1"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["publish", "peers"]


# The page.


def test_the_page_has_each_command_with_its_examples() -> None:
    for story in STORIES:
        part = PAGE.partition(f"\n## {story.name}\n")[2].partition("\n## ")[0]
        assert part, story.name
        for example in story.examples:
            assert example in part, example


EXAMPLES = [
    line.partition("#")[0].strip()
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", PAGE)
    for line in block.splitlines()
    if "aiobus " in line and not line.startswith("pip ")
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_each_example_of_the_page_is_understood(line: str) -> None:
    """By the command; what the other programs of a pipe understand is theirs."""
    (words,) = (
        shlex.split(part.strip())
        for part in re.split(r" \| (?=jq|aiobus)", line)
        if part.strip().startswith("aiobus ")
    )
    command: Any = typer.main.get_command(made())
    name, *given = words[1:]
    if name.startswith("--"):
        assert name in {each for option in command.params for each in option.opts}
        return
    context = command.make_context("aiobus", [name, *given])
    inner = command.get_command(context, name)
    assert inner.make_context(name, given, parent=context).params


@pytest.mark.slow
def test_the_examples_of_files_run_one_after_the_other(tmp_path: Path) -> None:
    """On the recording of a demo, named as the page names it."""
    steps = ["aiobus demo --seconds 1 --file desk.db"]
    for name in ("log", "export", "doctor", "bench"):
        steps += [line for line in EXAMPLES if line.startswith(f"aiobus {name}")]
    steps = [step for step in steps if "--follow" not in step and "|" not in step]
    steps += ["aiobus explain desk.db --hops"]
    assert len(steps) > 8
    for step in steps:
        step = step.replace("ipc://desk", f"ipc://{tmp_path}/d")
        step = step.replace("--seconds 20", "--seconds 0.4").replace("day.parquet", "day.jsonl")
        words = shlex.split(step)[1:] + (["--seconds", "0.4"] if step == "aiobus bench" else [])
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
        )
        assert done.returncode == 0, (step, done.stdout, done.stderr)


def test_the_table_of_exit_codes_is_that_of_the_helps() -> None:
    part = PAGE.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    told = {
        (name, int(code)): meaning
        for name, code, meaning in re.findall(
            r"^\| `?(.+?)`? \| (\d+) \| (.+) \|$", part, re.MULTILINE
        )
    }
    known = {(story.name, code): text for story in STORIES for code, text in story.codes.items()}
    known |= {("each", 2): "a wrong argument; nothing was done", ("each", 130): "ended by Ctrl-C"}
    assert told == known


def test_the_page_names_each_option() -> None:
    for story in STORIES:
        part = PAGE.partition(f"\n## {story.name}\n")[2].partition("\n## ")[0]
        _, told, _ = called(story.name, "--help")
        options = set(re.findall(r"^ +(?:-\w, )?(--[\w]+)", told, re.MULTILINE))
        for option in options - {"--help"}:
            assert option in part, (story.name, option)
