"""`aiobus keygen` and `aiobus members`, which need no extra; and `--keyring` of the others."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import keys
import pytest
import zmq
from actors import tcp_url
from commands import ENVIRONMENT, ran, running

import aiobus.__main__
from aiobus import AsyncEventBus, Keyring, KeyringError
from aiobus.cli.keys import KEYGEN, MEMBERS
from aiobus.keyring.changes import add, make_key, revoke
from aiobus.keyring.members import EVERYTHING, Member, Rules

BARE = (
    "import sys\n"
    "sys.modules.update(typer=None, rich=None)\n"  # as if they were not installed
    "from aiobus.__main__ import main\n"
    "code = main()\n"
    "loaded = [each for each in ('typer', 'rich', 'click') if sys.modules.get(each)]\n"
    "assert not loaded, loaded\n"
    "sys.exit(code)\n"
)


def bare(*words: str, at: Path | None = None, **more: str) -> "subprocess.CompletedProcess[str]":
    """`python -m aiobus` where the extra `cli` is not installed."""
    return subprocess.run(
        [sys.executable, "-c", BARE, *words],
        env={**ENVIRONMENT, **more},
        cwd=at,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


class Done(NamedTuple):
    """How a command has ended."""

    returncode: int
    stdout: str
    stderr: str


def called(*words: str, at: Path) -> Done:
    """The same in this process, which is sooner done."""
    with chdir(at), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
        code = aiobus.__main__.main(words)
    return Done(code, out.getvalue(), errors.getvalue())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# keygen


def test_the_first_key_begins_a_desk_without_the_extra(tmp_path: Path) -> None:
    done = bare("keygen", "feed", at=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    path = tmp_path / "keys"
    ring = Keyring.load(path)
    public = ring.members.by_name["feed"].key
    assert zmq.curve_public(ring.secret_of("feed").encode()).decode() == public
    assert f"the public key of feed: '{public}'" in done.stdout
    assert f"python -m aiobus members add feed '{public}'\n" in done.stdout
    assert mode(path) == 0o700
    assert mode(path / "feed.secret") == mode(path / "desk.seal") == 0o600
    assert mode(path / "desk.members") == 0o644
    assert sorted(each.name for each in path.iterdir()) == [
        ".list-changed-here",
        "desk.members",
        "desk.seal",
        "feed.secret",
    ]


def test_no_secret_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    said = ""
    for words in (
        ["keygen", "feed"],
        ["keygen", "screen", "--publish", ""],
        ["members", "rotate"],
        ["members"],
        ["members", "--json"],
        ["members", "revoke", "screen"],
        ["keygen", "feed"],
        ["members", "retire"],
    ):
        secrets = [each.strip() for each in read_secrets(path)]
        done = called(*words, at=tmp_path)
        said += done.stdout + done.stderr
        secrets += [each.strip() for each in read_secrets(path)]
        assert not any(each in said for each in secrets if each)
    assert len(secrets) >= 6


def read_secrets(path: Path) -> list[str]:
    files = [*path.glob("*.secret"), *path.glob("desk.seal")] if path.exists() else []
    return [line for file in files for line in file.read_text().splitlines()]


def test_the_mode_of_a_secret_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_key(str(tmp_path / "open"), "feed", EVERYTHING)
        os.umask(0o777)
        make_key(str(tmp_path / "open"), "screen", EVERYTHING)
    finally:
        os.umask(before)
    for name in ("feed", "screen"):
        assert mode(tmp_path / "open" / f"{name}.secret") == 0o600
    assert mode(tmp_path / "open" / "desk.members") == 0o644


def test_a_second_key_is_added_to_the_list_with_its_rules(tmp_path: Path) -> None:
    keys.make(tmp_path / "keys", "feed")
    done = called("keygen", "screen", "--publish", "", "--subscribe", "TRADE, FILL", at=tmp_path)
    assert done.returncode == 0, done.stderr
    ring = Keyring.load(tmp_path / "keys")
    assert ring.members.number == 2
    assert len(ring.desk_secrets) == 1
    rules = Rules(frozenset(), frozenset({"TRADE", "FILL"}))
    assert ring.members.by_name["screen"].rules == rules
    assert "--publish '' --subscribe FILL,TRADE\n" in done.stdout


@pytest.fixture
def hosts(tmp_path: Path) -> tuple[Path, Path]:
    """`feed-host` keeps the list. `strategy-host` has begun one, and has got a copy over it."""
    first, second = tmp_path / "feed-host", tmp_path / "strategy-host"
    for host, name in ((first, "feed"), (second, "strategy")):
        host.mkdir()
        keys.make(host / "keys", name)
    public = Keyring.load(second / "keys").members.by_name["strategy"].key
    assert called("members", "add", "strategy", public, at=first).returncode == 0
    copied(first, second)
    return first, second


def copied(source: Path, target: Path) -> None:
    for name in ("desk.members", "desk.seal"):
        keys.replaced(target / "keys" / name, (source / "keys" / name).read_bytes())


def test_a_key_that_is_made_beside_a_copy_of_the_list_changes_no_number_and_says_what_to_run(
    hosts: tuple[Path, Path],
) -> None:
    """Whatever is made there, the true list is taken by a bus of that host that runs."""
    first, second = hosts
    ring = Keyring.load(second / "keys")
    before = ring.members
    lines = []
    for name in ("risk", "broker", "screen"):
        done = called("keygen", name, "--publish", "", at=second)
        assert (done.returncode, done.stderr) == (0, "")
        assert "keys/desk.members (number 2) is a copy, and stays as it is" in done.stdout
        [line] = [each for each in done.stdout.splitlines() if "members add" in each]
        assert line.endswith(" --publish ''")
        lines.append(line.removeprefix("  python -m aiobus "))
    assert not ring.reload()
    assert ring.members is before
    assert {"risk", "broker", "screen"} <= {*ring.names}
    with pytest.raises(KeyringError, match="or add it on the host that keeps the list: `python"):
        ring.secret_of("risk")
    assert called(*shlex.split(lines[0]), at=first).returncode == 0
    copied(first, second)
    assert ring.reload()
    assert (ring.members.number, ring.problem) == (3, "")
    assert ring.secret_of("risk")


def test_where_the_list_is_kept_a_key_is_on_it_at_once(hosts: tuple[Path, Path]) -> None:
    first, _ = hosts
    done = called("keygen", "screen", at=first)
    assert "it is on the list here, which has the number 3 now" in done.stdout
    assert Keyring.load(first / "keys").secret_of("screen")


def test_a_name_on_a_copy_of_the_list_gets_no_second_key(hosts: tuple[Path, Path]) -> None:
    _, second = hosts
    done = called("keygen", "feed", at=second)
    assert done.returncode == 1
    assert "'feed' is on the list with another key" in done.stderr
    assert not (second / "keys" / "feed.secret").exists()


@pytest.mark.parametrize("words", [("revoke", "feed"), ("add", "late", "0" * 40)])
def test_who_changes_a_copy_of_the_list_keeps_it_from_then_on_and_is_told(
    hosts: tuple[Path, Path], words: tuple[str, ...]
) -> None:
    """As in an emergency, while the host that keeps it is down."""
    first, second = hosts
    done = called("members", *words, at=second)
    assert done.returncode == 0
    assert "from now on the list is kept here. Where it was kept" in done.stdout
    assert "from now on" not in called("members", "revoke", "strategy", at=second).stdout
    assert "it is on the list here" in called("keygen", "risk", at=second).stdout
    copied(second, first)
    assert "is a copy, and stays as it is" in called("keygen", "screen", at=first).stdout


def test_a_list_that_was_changed_by_hand_is_kept_again_once_a_command_has_changed_it(
    hosts: tuple[Path, Path],
) -> None:
    first, _ = hosts
    file = first / "keys" / "desk.members"
    keys.replaced(file, file.read_text().replace("number = 2", "number = 7"))
    done = called("keygen", "screen", at=first)
    assert "and the list was changed\nby hand, run that line here." in done.stdout
    [line] = [each for each in done.stdout.splitlines() if "members add" in each]
    assert called(*shlex.split(line.removeprefix("  python -m aiobus ")), at=first).returncode == 0
    assert "which has the number 9 now" in called("keygen", "risk", at=first).stdout


def test_a_secret_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    before = (tmp_path / "keys" / "feed.secret").read_bytes()
    done = called("keygen", "feed", at=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "feed.secret is there already, and no secret is overwritten" in done.stderr
    assert ring.members.by_name["feed"].key in done.stderr
    assert (tmp_path / "keys" / "feed.secret").read_bytes() == before
    assert Keyring.load(tmp_path / "keys").members == ring.members


def test_a_name_with_a_key_of_another_host_gets_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    add(str(path), Member("strategy", keys.key()))
    done = called("keygen", "strategy", at=tmp_path)
    assert done.returncode == 1
    assert "'strategy' is on the list with another key" in done.stderr
    assert "members revoke strategy" in done.stderr
    assert not (path / "strategy.secret").exists()


def test_a_directory_that_others_can_write_gets_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.mkdir()
    path.chmod(0o777)
    done = called("keygen", "feed", at=tmp_path)
    assert done.returncode == 1
    assert f"`chmod go-w {'keys'}`" in done.stderr
    assert [*path.iterdir()] == []


def test_a_directory_in_one_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    done = called("keygen", "feed", "--keyring", f"{tmp_path}/a/b", at=tmp_path)
    assert done.returncode == 1
    assert f"there is no directory {tmp_path}/a" in done.stderr


@pytest.mark.slow
def test_the_directory_is_that_of_the_option_then_of_the_environment_then_keys(
    tmp_path: Path,
) -> None:
    where = {"AIOBUS_KEYRING": f"{tmp_path}/two"}
    bare("keygen", "a", "--keyring", f"{tmp_path}/one", at=tmp_path, **where)
    bare("keygen", "b", at=tmp_path, **where)
    bare("keygen", "c", at=tmp_path)
    for name, directory in (("a", "one"), ("b", "two"), ("c", "keys")):
        assert Keyring.load(tmp_path / directory).names == (name,)


@pytest.mark.slow
def test_many_at_once_lose_no_member(tmp_path: Path) -> None:
    names = [f"bot{number}" for number in range(6)]
    keys.make(tmp_path / "keys", "feed")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, "keygen", name],
            env=ENVIRONMENT,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )
        for name in names
    ]
    assert [each.wait(50) for each in running] == [0] * 6
    ring = Keyring.load(tmp_path / "keys")
    assert {*ring.members.by_name} == {"feed", *names}
    assert ring.members.number == 7
    assert not [*(tmp_path / "keys").glob(".*.new")]


def test_a_key_never_begins_with_a_dash_which_a_command_would_take_for_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(b"-" + b"0" * 39, b"1" * 40), (b"0" * 40, b"1" * 40)]
    monkeypatch.setattr(zmq, "curve_keypair", lambda: pairs.pop(0))
    made = make_key(str(tmp_path / "keys"), "feed", EVERYTHING)
    assert pairs == []
    assert not made.public.startswith("-")


# members


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keys.make(tmp_path / "keys", "feed", "screen", screen=Rules(frozenset(), frozenset({"FILL"})))
    return tmp_path / "keys"


def members(path: Path, *words: str) -> Done:
    return called("members", *words, at=path.parent)


def test_the_list_has_names_keys_rules_number_and_digest(path: Path) -> None:
    add(str(path), Member("strategy", keys.key()))
    revoke(str(path), "strategy")
    ring = Keyring.load(path)
    feed, screen = (ring.members.by_name[name] for name in ("feed", "screen"))
    done = members(path)
    assert done.returncode == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1:3] == [
        ["feed", feed.key, "*", "*", "here"],
        ["screen", screen.key, "none", "FILL", "here"],
    ]
    assert rows[3] == ["strategy", *ring.members.revoked, "revoked", "revoked", "-"]
    assert f"keys/desk.members: number 4, digest {ring.members.digest}" in done.stdout


def test_the_list_as_json_is_one_line(path: Path) -> None:
    add(str(path), Member("strategy", keys.key()))
    revoke(str(path), "strategy")
    ring = Keyring.load(path)
    (line,) = members(path, "--json").stdout.splitlines()
    told = json.loads(line)
    assert (told["number"], told["digest"]) == (4, ring.members.digest)
    assert told["members"][1] == {
        "name": "screen",
        "key": ring.members.by_name["screen"].key,
        "publish": [],
        "subscribe": ["FILL"],
        "secret": True,
    }
    assert told["members"][0]["publish"] is None
    assert told["revoked"] == [{"name": "strategy", "key": next(iter(ring.members.revoked))}]


def test_a_list_is_shown_without_a_desk_secret(path: Path) -> None:
    (path / "desk.seal").unlink()
    assert members(path).returncode == 0


def test_a_member_is_added_with_the_line_that_keygen_printed(path: Path, tmp_path: Path) -> None:
    there = bare("keygen", "strategy", "--publish", "ORDER", "--keyring", f"{tmp_path}/there")
    (line,) = {each for each in there.stdout.splitlines() if "members add" in each}
    quoted = subprocess.run(
        ["sh", "-c", line.replace("python -m aiobus", f'{sys.executable} -c "$BARE"')],
        env={**ENVIRONMENT, "BARE": BARE},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert quoted.returncode == 0, quoted.stderr
    assert "strategy is on the list (number 3)" in quoted.stdout
    ring, other = Keyring.load(path), Keyring.load(tmp_path / "there")
    assert ring.members.by_name["strategy"] == other.members.by_name["strategy"]


def test_adding_a_member_again_changes_its_rules_or_nothing(path: Path) -> None:
    key = Keyring.load(path).members.by_name["feed"].key
    assert "is on the list already (number 2)" in members(path, "add", "feed", key).stdout
    done = members(path, "add", "feed", key, "--publish", "TRADE")
    assert "(number 3)" in done.stdout
    assert Keyring.load(path).members.by_name["feed"].rules == Rules(frozenset({"TRADE"}))


def test_adding_a_member_again_without_its_rules_says_that_they_are_gone(path: Path) -> None:
    """The command that a bus suggests has no rules in it."""
    key = Keyring.load(path).members.by_name["feed"].key
    told = members(path, "add", "feed", key, "--publish", "TRADE").stdout
    assert "its rules were none, and are --publish TRADE\n" in told
    told = members(path, "add", "feed", key).stdout
    assert "its rules were --publish TRADE, and are none: it may do all\n" in told


@pytest.mark.parametrize("run", [bare, called], ids=["bare", "with the extra"])
def test_a_key_that_begins_with_a_dash_is_no_option(path: Path, run: Callable[..., Done]) -> None:
    """No command here makes one, but another program may."""
    key = "-a" + "0" * 38
    for more in ((), ("--publish", "TRADE")):
        done = run("members", "add", "strategy", key, *more, at=path.parent)
        assert (done.returncode, done.stderr) == (0, "")
    added = Keyring.load(path).members.by_name["strategy"]
    assert added == Member("strategy", key, Rules(frozenset({"TRADE"})))


def test_an_option_that_is_as_long_as_a_key_is_an_option(tmp_path: Path) -> None:
    word = "--keyring=".ljust(40, "k")
    assert called("keygen", "feed", word, at=tmp_path).returncode == 0
    assert (tmp_path / word.removeprefix("--keyring=") / "feed.secret").exists()


def test_a_name_or_a_key_that_is_taken_is_not_added(path: Path) -> None:
    key = Keyring.load(path).members.by_name["feed"].key
    before = (path / "desk.members").read_bytes()
    for words, said in (
        (["feed", keys.key()], "'feed' is on the list with another key"),
        (["strategy", key], "'feed' and 'strategy' have the same key"),
    ):
        done = members(path, "add", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
    assert (path / "desk.members").read_bytes() == before


def test_a_key_that_was_revoked_never_comes_back(path: Path) -> None:
    key = Keyring.load(path).members.by_name["screen"].key
    assert members(path, "revoke", "screen").returncode == 0
    for name in ("screen", "other"):
        done = members(path, "add", name, key)
        assert done.returncode == 1
        assert "this key was revoked, as that of 'screen'" in done.stderr
    (path / "screen.secret").unlink()
    assert called("keygen", "screen", at=path.parent).returncode == 0  # with another key it may
    assert Keyring.load(path).secret_of("screen")


def test_revoking_says_what_is_to_be_done_then(path: Path) -> None:
    key = Keyring.load(path).members.by_name["screen"].key
    done = members(path, "revoke", "screen")
    assert done.returncode == 0
    assert "screen is revoked (number 3)" in done.stdout
    assert "Copy keys/desk.members to every host" in done.stdout
    assert "python -m aiobus members rotate\n" in done.stdout
    assert "python -m aiobus members retire\n" in done.stdout
    found = Keyring.load(path).members
    assert "screen" not in found.by_name
    assert found.revoked == {key: "screen"}


def test_the_commands_that_are_printed_name_a_directory_of_its_own(path: Path) -> None:
    other = path.rename(path.parent / "my keys")
    done = called("members", "revoke", "screen", "--keyring", str(other), at=path.parent)
    assert f"members rotate --keyring '{other}'\n" in done.stdout


def test_who_is_no_member_cannot_be_revoked(path: Path) -> None:
    done = members(path, "revoke", "scren")
    assert done.returncode == 1
    assert "'scren' is not in keys/desk.members; members: feed, screen" in done.stderr
    members(path, "revoke", "screen")
    assert "'screen' was revoked before" in members(path, "revoke", "screen").stderr


def test_a_new_desk_secret_stands_before_the_old_and_they_are_dropped_later(path: Path) -> None:
    before = Keyring.load(path)
    done = members(path, "rotate")
    assert "has a new secret, and 1 old that are accepted as well" in done.stdout
    rotated = Keyring.load(path)
    assert rotated.desk_secrets[1:] == before.desk_secrets
    assert mode(path / "desk.seal") == 0o600
    assert "1 dropped" in members(path, "retire").stdout
    assert Keyring.load(path).desk_secrets == rotated.desk_secrets[:1]
    assert "there is nothing to drop" in members(path, "retire").stdout
    assert Keyring.load(path).members == before.members


def test_there_are_no_more_desk_secrets_than_are_read(path: Path) -> None:
    codes = [members(path, "rotate").returncode for _ in range(16)]
    assert codes == [0] * 15 + [1]
    assert len(Keyring.load(path).desk_secrets) == 16
    assert "drop the old ones by" in members(path, "rotate").stderr


def test_a_host_without_a_desk_secret_gets_the_first(path: Path) -> None:
    (path / "desk.seal").unlink()
    assert members(path, "retire").returncode == 1
    assert "has the first secret of the desk" in members(path, "rotate").stdout
    assert len(Keyring.load(path).desk_secrets) == 1


def test_a_damaged_file_is_told_and_not_written(path: Path) -> None:
    for name, words in (
        ("desk.members", ["add", "strategy", keys.key()]),
        ("desk.members", ["revoke", "feed"]),
        ("desk.seal", ["rotate"]),
        ("desk.seal", ["retire"]),
    ):
        keys.replaced(path / name, b"colour = 1")
        done = members(path, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"keys/{name}")
        assert (path / name).read_bytes() == b"colour = 1"


def test_without_a_list_there_is_nothing_to_show_or_change(tmp_path: Path) -> None:
    for words in ([], ["rotate"], ["add", "feed", keys.key()]):
        done = called("members", *words, at=tmp_path)
        assert done.returncode == 1
        assert "keys: there is no such directory. `python -m aiobus keygen NAME" in done.stderr


def test_a_full_disk_leaves_the_list_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (path / "desk.members").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert aiobus.__main__.main(["members", "revoke", "screen", "--keyring", str(path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (path / "desk.members").read_bytes() == before
    assert not [*path.glob(".*.new")]


@pytest.mark.parametrize("fitting", range(3))
def test_a_disk_that_is_full_as_a_desk_is_begun_leaves_nothing_that_keeps_the_next_attempt_out(
    tmp_path: Path, fitting: int
) -> None:
    """As soon as there was a secret without a list, no key of that name could be made."""
    synced, sync = 0, os.fsync

    def fill(descriptor: int) -> None:
        nonlocal synced
        synced += not stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if synced > fitting:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    command = ["keygen", "feed", "--keyring", str(tmp_path / "keys")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        assert aiobus.__main__.main(command) == 1
    assert [*(tmp_path / "keys").iterdir()] == []
    assert aiobus.__main__.main(command) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keygen"], "NAME"),
        (["keygen", "a b"], "'a b' is not 1-64 characters of A-Z a-z 0-9 . _ -"),
        (["keygen", "feed", "--publish", "TRA DE"], "--publish: 'TRA DE' is not 1-64"),
        (["keygen", "feed", "--publish", "*"], "leave the rule out, and every type is allowed"),
        (["keygen", "feed", "--subscribe", "aiobus.gap"], "are the bus's own and need no rule"),
        (["keygen", "feed", "--colour"], "--colour"),
        (["members", "nonsense"], "invalid choice: 'nonsense'"),
        (["members", "add", "feed"], "KEY"),
        (["members", "add", "feed", "abc"], "a key is 40 characters of Z85"),
        (["members", "revoke"], "NAME"),
        (["members", "revoke", "a b"], "is not 1-64 characters"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert aiobus.__main__.main(words) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert said in errors
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("story", [KEYGEN, MEMBERS], ids=lambda story: story.name)
def test_the_help_needs_no_extra_and_has_the_exit_codes(story: Any) -> None:
    done = bare(story.name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: aiobus {story.name} ")
    assert all(f"  {code} " in done.stdout for code in story.every_code)


def test_the_help_of_the_whole_command_has_them_and_they_are_the_same(tmp_path: Path) -> None:
    from aiobus.cli import app

    assert {"keygen", "members"} <= {story.name for story in app.STORIES}
    assert app.main(["keygen", "feed", "--publish", "TRADE", "--keyring", f"{tmp_path}/k"]) == 0
    member = Keyring.load(tmp_path / "k").members.by_name["feed"]
    assert member.rules == Rules(frozenset({"TRADE"}))
    assert app.main(["members", "revoke", "nobody", "--keyring", f"{tmp_path}/k"]) == 1
    assert app.main(["members", "add", "a b", member.key]) == 2


# Commands that join a desk.


@pytest.mark.one_loop
@pytest.mark.parametrize("command", ["tail", "peers", "doctor", "publish", "record"])
async def test_keys_for_a_desk_without_are_a_wrong_argument(command: str, tmp_path: Path) -> None:
    words = {"publish": ["HALT", "{}"], "record": [f"{tmp_path}/no.db"]}.get(command, [])
    code, out, errors = await ran(command, "ipc://desk", *words, "--keyring", "keys")
    assert (code, out) == (2, "")
    assert "--keyring keys: ipc://desk has no keys; they are for tcp://host:port" in errors


@pytest.mark.one_loop
@pytest.mark.parametrize("command", ["tail", "peers", "publish", "record"])
async def test_a_keyring_that_is_not_there_is_told(command: str, tmp_path: Path) -> None:
    words = {"publish": ["HALT", "{}"], "record": [f"{tmp_path}/no.db"]}.get(command, [])
    url = tcp_url()
    code, out, errors = await ran(command, url, *words, "--keyring", f"{tmp_path}/keys")
    assert (code, out) == (1, "")
    assert f"{tmp_path}/keys: there is no such directory" in errors


@pytest.mark.one_loop
async def test_a_doctor_says_what_is_wrong_with_the_keys(tmp_path: Path) -> None:
    keys.make(tmp_path / "keys", "doctor")
    (tmp_path / "keys" / "desk.seal").chmod(0o644)
    url = tcp_url()
    code, out, _ = await ran("doctor", url, "--keyring", f"{tmp_path}/keys", "--listen", "0")
    assert code == 1
    assert f"cannot be joined: {tmp_path}/keys/desk.seal can be read or written by other" in out


@pytest.mark.slow
@pytest.mark.one_loop
async def test_a_command_joins_as_the_member_that_has_its_name_or_only_looks_on(
    tmp_path: Path,
) -> None:
    url, path = tcp_url(), tmp_path / "keys"
    ring = keys.make(path, "feed", "screen", screen=Rules(publish=frozenset()))
    async with AsyncEventBus(url, name="feed", keyring=ring) as bus:
        code, out, errors = await ran("peers", url, "--keyring", str(path))
        assert code == 0, errors
        assert "feed" in out
        async with running("tail", url, "--keyring", str(path)) as tail:
            await tail.says("- feed: there already")
            await bus.wait_for_peer("screen", timeout=20)
        keys.make(path, "tail-1")
        ring.reload()
        async with running("tail", url, "--keyring", str(path)) as tail:
            await tail.says("- feed: there already")
            await bus.wait_for_peer("tail-1", timeout=20)


@pytest.mark.slow
@pytest.mark.one_loop
async def test_a_command_that_could_be_several_members_needs_a_name_and_takes_no_bots(
    tmp_path: Path,
) -> None:
    url, path = tcp_url(), tmp_path / "keys"
    keys.make(path, "feed")
    for command in ("peers", "tail"):
        code, out, errors = await ran(command, url, "--keyring", str(path))
        assert (code, out) == (2, "")
        assert "give --name. Members with a secret here: feed." in errors
        assert f"`aiobus keygen {command} --publish '' --keyring {path}`" in errors
    code, _, errors = await ran("peers", url, "--keyring", str(path), "--name", "strategy")
    assert code == 1
    assert "'strategy' is not in" in errors
    code, _, errors = await ran("peers", url, "--keyring", str(path), "--name", "feed")
    assert (code, "nobody is at" in errors) == (3, True)


@pytest.mark.slow
@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("command", "words", "made"),
    [
        ("peers", [], "`aiobus keygen peers --publish ''`"),
        ("tail", ["--name", "screen"], "`aiobus keygen screen --publish ''`"),
        ("publish", ["HALT", "{}"], "`aiobus keygen publish`"),
    ],
)
async def test_a_command_without_a_keyring_asks_for_it_and_for_no_key_of_one_run(
    command: str, words: list[str], made: str
) -> None:
    code, out, errors = await ran(command, "tcp://127.0.0.1:7555,desk.invalid:7555", *words)
    assert (code, out) == (1, "")
    assert "give the directory of its keyring, by --keyring or in AIOBUS_KEYRING." in errors
    assert made in errors


@pytest.mark.one_loop
async def test_a_demo_on_a_desk_with_keys_names_the_secret_that_it_lacks(tmp_path: Path) -> None:
    url, path = tcp_url(), tmp_path / "keys"
    keys.make(path, "monitor", "feed", "strategy", "gateway")
    code, _, errors = await ran("demo", "--url", url, "--keyring", str(path), "--seconds", "0.2")
    assert code == 1
    assert "'broker' is not in" in errors
    keys.make(path, "broker")
    code, _, errors = await ran("demo", "--url", url, "--keyring", str(path), "--seconds", "0.2")
    assert code == 0, errors


def test_a_keeper_takes_a_keyring_on_tcp_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from aiobus.keeper.__main__ import main

    keys.make(tmp_path / "keys", "keeper")
    file = f"{tmp_path}/state.db"
    assert main(["ipc://desk", file, "--keyring", f"{tmp_path}/keys"]) == 1
    assert "ipc:// is for one user of one machine, and has no keys" in caplog.text
    assert main([tcp_url(), file, "--keyring", f"{tmp_path}/none"]) == 1
    assert f"{tmp_path}/none: there is no such directory" in caplog.text


def test_aiobus_run_takes_a_keyring_and_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def bot(bus: AsyncEventBus) -> None:
        seen.append(bus)

    ring = keys.make(tmp_path / "keys", "feed")
    url = tcp_url()
    aiobus.run(bot, url, "feed", keyring=ring, until="return", uvloop=False)
    monkeypatch.setenv("AIOBUS_KEYRING", f"{tmp_path}/keys")
    aiobus.run(bot, url, "feed", until="return", uvloop=False)
    rings = [each._transport.network.keyring for each in seen]
    assert rings[0] is ring
    assert rings[1].path == ring.path


def test_a_bot_whose_keyring_of_the_environment_is_wrong_logs_one_line_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def bot(bus: AsyncEventBus) -> None:
        raise AssertionError("it has no keys")

    monkeypatch.setenv("AIOBUS_KEYRING", f"{tmp_path}/none")
    with pytest.raises(SystemExit) as ended:
        aiobus.run(bot, tcp_url(), "feed", until="return", uvloop=False)
    assert ended.value.code == 1
    [line] = [each for each in caplog.records if each.name == "aiobus.bot"]
    assert line.getMessage().startswith(f"feed did not start: {tmp_path}/none: there is no such")
    assert "AIOBUS_KEYRING is" in line.getMessage()
    assert line.exc_info is None
