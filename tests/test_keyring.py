"""The list of members, and what a host has of the keys."""

import copy
import os
import pickle
import signal
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keys
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as some
from zmq.utils import z85

from aiobus import AsyncEventBus, Keyring, KeyringError, Limits
from aiobus.discovery.rendezvous import Rendezvous
from aiobus.discovery.roster import ProtocolError
from aiobus.discovery.seal import Seal, accepted, answered, new_nonce, opening
from aiobus.keyring.changes import add, revoke, rotate
from aiobus.keyring.files import Folder, Hidden
from aiobus.keyring.members import EVERYTHING, Member, Members, Rules, bad_key_text
from aiobus.mesh.keyed import KeyedNetwork
from aiobus.mesh.sockets import ZmqNetwork
from aiobus.query import Query
from aiobus.url import adapter

A, B = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
C = "0" * 39 + "1"
LIST = f"""
number = 7

[members.feed]
key = "{A}"
publish = ["TRADE", "QUOTE"]
subscribe = []

[members."strategy.one"]
key = "{B}"

[revoked]
"{C}" = "old"
"""


# The list as text.


def test_a_list_has_members_with_rules_and_revoked_keys() -> None:
    members = Members.parse(LIST)
    assert members.number == 7
    rules = Rules(frozenset({"TRADE", "QUOTE"}), frozenset())
    assert members.by_name["feed"] == Member("feed", A, rules)
    assert members.by_name["strategy.one"] == Member("strategy.one", B, EVERYTHING)
    assert members.by_key[B].name == "strategy.one"
    assert members.revoked == {C: "old"}


def test_a_list_reads_its_own_text_and_has_the_same_digest() -> None:
    members = Members.parse(LIST)
    again = Members.parse(members.text)
    assert again == members
    assert again.digest == members.digest
    assert len(members.digest) == 16


def test_each_change_makes_another_list_with_a_higher_number_and_another_digest() -> None:
    first = Members.parse(LIST)
    second = first.with_member(Member("broker", keys.key()))
    third = second.without("feed")
    assert [each.number for each in (first, second, third)] == [7, 8, 9]
    assert len({each.digest for each in (first, second, third)}) == 3
    assert "feed" not in third.by_name
    assert third.revoked[A] == "feed"
    assert "broker" not in first.by_name


def test_a_list_cannot_be_changed_in_place() -> None:
    members: Any = Members.parse(LIST)
    with pytest.raises(TypeError):
        members.by_name["feed"] = None
    with pytest.raises(TypeError):
        members.by_key[A] = None
    with pytest.raises(AttributeError):
        members.number = 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "`number = N` is needed"),
        ("number = -1", "`number = N` is needed"),
        ("number = true", "`number = N` is needed"),
        ("number = 1.5", "`number = N` is needed"),
        ("number = '1'", "`number = N` is needed"),
        (f"number = {2**53}", "`number = N` is needed"),
        (f"number = {'9' * 5000}", "is no TOML"),
        ("number = 1\nkey = feed\n", "is no TOML: Invalid value (at line 2, column 7)"),
        ("number = 1\ncolour = 1", "the list has 'colour', and it may have number, members, revo"),
        ("number = 1\nmembers = 1", "`members` is an int; a table [members] is needed"),
        ("number = 1\nrevoked = []", "`revoked` is a list; a table [revoked] is needed"),
        ("number = 1\nmembers.feed = 1", "member 'feed' is an int; a table [members.feed]"),
        ("number = 1\n[members.feed]", "member 'feed' has no key; `python -m aiobus keygen feed`"),
        ("number = 1\n[members.'a b']\nkey = ''", "member 'a b': a name is 1-64 characters"),
        (f"number = 1\n[members.'{'n' * 65}']", "a name is 1-64 characters"),
        (f"number = 1\n[members.'{'n' * 5000}']", "a name is 1-64 characters"),
        ("number = 1\n[members.a.b]\nkey = ''", 'in quotes, such as [members."feed.binance"]'),
        ("number = 1\n[members.a]\nkey = 5", "member 'a': a key is a text, not an int"),
        ("number = 1\n[members.a]\nkey = 'abc'", "member 'a': a key is 40 characters of Z85"),
        (f"number = 1\n[members.a]\nkey = '{'~' * 40}'", "a key is 40 characters of Z85"),
        (f"number = 1\n[members.a]\nkey = '{'#' * 40}'", "32 bytes as Z85, and characters 1 to 5"),
        (f"number = 1\n[members.a]\nkey = '{A}'\nkeys = 1", "has 'keys', and it may have key, pub"),
        (f"number = 1\n[members.a]\nkey = '{A}'\nkey = '{A}'", "is no TOML"),
        (f"number = 1\n[members.a]\nkey = '{A}'\n[members.b]\nkey = '{A}'", "have the same key"),
        (f"number = 1\n[members.a]\nkey = '{A}'\n[revoked]\n'{A}' = 'b'", "is revoked as well"),
        (f"number = 1\n[members.a]\nkey = '{A}'\npublish = 'T'", 'a list such as ["TRADE"]'),
        (f"number = 1\n[members.a]\nkey = '{A}'\npublish = [5]", "`publish`: 5 is an int"),
        (f"number = 1\n[members.a]\nkey = '{A}'\nsubscribe = ['T D']", "'T D' is not 1-64"),
        (f"number = 1\n[members.a]\nkey = '{A}'\nsubscribe = ['*']", "'*' is no type: leave the"),
        (f"number = 1\n[members.a]\nkey = '{A}'\npublish = ['aiobus.gap']", "are the bus's own"),
        ("number = 1\n[revoked]\nfeed = 'x'", "[revoked], entry 1: a key is 40 characters"),
        (f"number = 1\n[revoked]\n'{A}' = 'a b'", "[revoked], entry 1: its name 'a b' is not"),
        (f"number = 1\n[revoked]\n'{A}' = 5", "[revoked], entry 1: its name 5 is an int"),
        (f"number = {'[' * 5000}", "nested too deep"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_with_its_file_and_place(text: str, said: str) -> None:
    with pytest.raises(KeyringError) as raised:
        Members.parse(text, "keys/desk.members")
    assert str(raised.value).startswith("keys/desk.members")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 500


def test_what_is_no_key_is_not_quoted_since_it_may_be_a_secret() -> None:
    secret = zmq.curve_keypair()[1].decode()[:-1]
    with pytest.raises(KeyringError) as raised:
        Members.parse(f"number = 1\n[members.a]\nkey = '{secret}'")
    assert secret not in str(raised.value)


def test_a_list_has_4096_members_and_not_one_more() -> None:
    def text(count: int) -> str:
        rows = (f"[members.m{at}]\nkey = '{at:040d}'" for at in range(count))
        return "\n".join(["number = 1", *rows])

    assert len(Members.parse(text(4096)).by_name) == 4096
    with pytest.raises(KeyringError, match=r"\[members\] has 4,097 entries, more than 4,096"):
        Members.parse(text(4097))


def test_there_are_4096_revoked_keys_and_the_way_out_of_more_is_to_remove_some() -> None:
    rows = "\n".join(f"'{at:040d}' = 'old'" for at in range(4097))
    with pytest.raises(KeyringError, match="remove lines of it: a key that is not on the list is"):
        Members.parse(f"number = 1\n[revoked]\n{rows}")


@given(some.text(alphabet=some.characters(codec="utf-8"), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_list_or_a_keyring_error(text: str) -> None:
    for each in (text, f"number = 1\n{text}", LIST.replace("feed", text, 1)):
        try:
            members = Members.parse(each)
        except KeyringError:
            continue
        assert Members.parse(members.text) == members


@given(some.binary(min_size=32, max_size=32))
@settings(max_examples=100, deadline=None)
def test_32_bytes_as_z85_are_a_key_and_31_or_more_than_the_digits_can_are_none(key: bytes) -> None:
    text = z85.encode(key).decode()
    assert bad_key_text(text) == ""
    assert bad_key_text(text[:-1])
    assert bad_key_text(text[:35] + "#####")


# Rules.


def test_a_member_without_rules_may_publish_and_subscribe_to_everything() -> None:
    assert EVERYTHING.may_publish("ORDER")
    assert EVERYTHING.may_subscribe(Query.of("*"))


def test_a_star_of_a_restricted_member_is_refused_and_not_narrowed() -> None:
    rules = Rules(subscribe=frozenset({"TRADE", "FILL"}))
    assert rules.may_subscribe(Query.of(["TRADE", "FILL"], "BTC*"))
    assert not rules.may_subscribe(Query.of("*"))
    assert not rules.may_subscribe(Query.of(["TRADE", "ORDER"]))


def test_an_empty_rule_allows_nothing() -> None:
    rules = Rules(publish=frozenset(), subscribe=frozenset())
    assert not rules.may_publish("TRADE")
    assert not rules.may_subscribe(Query.of("TRADE"))


# The files.


def test_a_keyring_has_the_list_the_desk_secrets_and_the_secrets_of_this_host(
    tmp_path: Path,
) -> None:
    ring = keys.make(tmp_path / "keys", "feed", "screen")
    assert ring.names == ("feed", "screen")
    assert [*ring.members.by_name] == ["feed", "screen"]
    (secret,) = ring.desk_secrets
    assert len(secret.value) == 32
    for name in ring.names:
        public = zmq.curve_public(ring.secret_of(name).encode()).decode()
        assert public == ring.members.by_name[name].key
    assert ring.problem == ""


def test_a_keyring_is_found_after_the_working_directory_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys.make(tmp_path / "keys", "feed")
    ring = Keyring.load("keys")
    monkeypatch.chdir("/")
    assert ring.secret_of("feed")


def test_what_is_no_path_is_a_type_error() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="path=5: the directory of a keyring is needed"):
        Keyring.load(wrong)


def test_a_directory_that_is_not_there_is_told_with_the_command_that_makes_it(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyringError, match=f"`python -m aiobus keygen NAME --keyring {tmp_path}/k"):
        Keyring.load(tmp_path / "k")
    (tmp_path / "file").touch()
    with pytest.raises(KeyringError, match="a keyring is a directory, and this is none"):
        Keyring.load(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("desk.members", "has no desk.members, the list of the members of the desk: copy it from"),
        ("desk.seal", "has no desk.seal, the secret of the desk: copy it from another host"),
    ],
)
def test_a_file_that_is_missing_is_told_with_where_it_comes_from(
    tmp_path: Path, name: str, said: str
) -> None:
    keys.make(tmp_path / "keys", "feed")
    (tmp_path / "keys" / name).unlink()
    with pytest.raises(KeyringError, match=said):
        Keyring.load(tmp_path / "keys")


def opened(path: Path, name: str) -> None:
    """Read all that a bus of this name needs."""
    Keyring.load(path).secret_of(name)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
@pytest.mark.parametrize("name", ["desk.seal", "feed.secret"])
def test_a_secret_that_others_can_read_or_write_is_refused(
    tmp_path: Path, name: str, mode: int
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    opened(path, "feed")
    (path / name).chmod(mode)
    with pytest.raises(KeyringError, match=f"by other users.*`chmod 600 {path / name}`"):
        opened(path, "feed")


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("desk.seal", "replace it by `python -m aiobus members rotate`"),
        ("feed.secret", "`python -m aiobus members revoke feed`, remove the file, and make"),
    ],
)
def test_a_secret_that_others_could_read_names_its_mode_and_how_it_is_replaced(
    tmp_path: Path, name: str, way_out: str
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    (path / name).chmod(0o644)
    with pytest.raises(KeyringError, match=rf"\(mode 644\).*{way_out}"):
        opened(path, "feed")


@pytest.mark.parametrize("name", ["desk.seal", "feed.secret"])
def test_a_secret_that_is_a_symbolic_link_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyringError, match=f"{path / name} is a symbolic link"):
        opened(path, "feed")


@pytest.mark.parametrize("name", ["desk.seal", "feed.secret", "desk.members"])
def test_a_pipe_in_place_of_a_file_is_refused_and_does_not_stop_the_process(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    (path / name).unlink()
    os.mkfifo(path / name, 0o600)
    with pytest.raises(KeyringError, match=f"{path / name} is no file"):
        opened(path, "feed")


@pytest.mark.parametrize("name", ["desk.seal", "desk.members"])
def test_a_directory_in_place_of_a_file_is_a_problem_and_costs_no_descriptor(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    (path / name).unlink()
    (path / name).mkdir(0o700)
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        assert not ring.reload()
    assert f"{path / name} is no file" in ring.problem
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("mode", [0o660, 0o646])
def test_a_list_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    (path / "desk.members").chmod(mode)
    with pytest.raises(KeyringError, match=f"`chmod go-w {path}/desk.members`"):
        opened(path, "feed")


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    path.chmod(mode)
    with pytest.raises(KeyringError, match=f"`chmod go-w {path}`"):
        opened(path, "feed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("name", ["desk.seal", "feed.secret", "desk.members", "."])
def test_a_file_of_another_user_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    os.chown(path / name, 12345, -1)
    with pytest.raises(KeyringError, match="is owned by user 12345, and this process is user 0"):
        opened(path, "feed")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_list_and_a_directory_of_root_are_taken_and_a_secret_of_root_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    path.chmod(0o755)
    os.chown(path / "desk.seal", 12345, -1)
    monkeypatch.chdir(path)  # what is above it is closed to that user
    os.seteuid(12345)
    try:
        with Folder(".") as folder:
            assert folder.read("desk.members")
            assert folder.read_secret("desk.seal")
            with pytest.raises(KeyringError, match=r"denied\. This process is user 12345: run"):
                folder.read_secret("feed.secret")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "size"), [("desk.members", 4 * 1024 * 1024 + 1), ("desk.seal", 4097)]
)
def test_a_file_as_big_as_an_attacker_makes_it_is_not_read_on(
    tmp_path: Path, name: str, size: int
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    os.truncate(path / name, size)
    with pytest.raises(KeyringError, match=r"has more than .* bytes: it is another file"):
        opened(path, "feed")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "desk.seal is empty"),
        (b"\n\n", "desk.seal is empty"),
        (b"00" * 31, "line 1: a desk secret is 64 hexadecimal digits"),
        (b"0g" * 32, "line 1: a desk secret is 64 hexadecimal digits"),
        (b"\xff" * 64, "line 1: a desk secret is 64 hexadecimal digits"),
        (b"00" * 32 + b"\n" + b"11" * 33, "line 2: a desk secret is 64 hexadecimal digits"),
        (b"0a" * 32 + b"\n\n" + b"0A" * 32, "line 3: this secret is in it twice"),
        (b"\n".join(b"%064x" % each for each in range(17)), "has 17 secrets, more than 16"),
    ],
)
def test_what_is_wrong_with_the_desk_secrets_is_said_with_the_line(
    tmp_path: Path, text: bytes, said: str
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    keys.replaced(path / "desk.seal", text)
    with pytest.raises(KeyringError, match=said):
        Keyring.load(path)


def test_the_newest_desk_secret_is_the_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    (old,) = ring.desk_secrets
    rotate(str(path))
    assert ring.reload()
    assert ring.desk_secrets[1:] == (old,)


def test_a_list_that_is_no_text_is_told_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    keys.replaced(path / "desk.members", b"number = 1\n\xff")
    with pytest.raises(KeyringError, match=r"desk\.members is no text: byte 11 is not UTF-8"):
        Keyring.load(path)


# The secret of a member.


def test_a_name_that_is_not_on_the_list_is_told_with_those_that_could_be_given(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    with pytest.raises(KeyringError, match=r"secret here: feed, screen\. Give one of these"):
        ring.secret_of("strategy")
    with pytest.raises(KeyringError, match=f"`python -m aiobus keygen strategy --keyring {path}`"):
        ring.secret_of("strategy")
    with pytest.raises(KeyringError, match="'a b' is not 1-64 characters"):
        ring.secret_of("a b")


def test_a_secret_that_is_not_on_the_list_yet_is_told_with_the_line_to_run(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    keys.make(there, "feed")
    ring = keys.make(here, "strategy")
    public = ring.members.by_name["strategy"].key
    for name in ("desk.members", "desk.seal"):
        keys.replaced(here / name, (there / name).read_bytes())
    with pytest.raises(KeyringError) as raised:
        Keyring.load(here).secret_of("strategy")
    line = f"on the host that keeps the list: `python -m aiobus members add strategy '{public}'`"
    assert line in str(raised.value)


def test_a_member_whose_secret_is_on_another_host_is_told(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    add(str(path), Member("strategy", keys.key()))
    ring.reload()
    with pytest.raises(KeyringError, match="no secret of 'strategy', which is on the list: its"):
        ring.secret_of("strategy")


def test_a_revoked_member_is_told_with_its_way_back(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    revoke(str(path), "screen")
    ring.reload()
    with pytest.raises(KeyringError, match=r"'screen' was revoked in .* \(number 3\)"):
        ring.secret_of("screen")
    assert ring.names == ("feed", "screen")


def test_a_secret_of_another_key_than_that_on_the_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    public, secret = zmq.curve_keypair()
    keys.replaced(path / "feed.secret", secret)
    with pytest.raises(KeyringError, match="does not belong to the public key of 'feed'") as raised:
        ring.secret_of("feed")
    assert f"members add feed '{public.decode()}'" in str(raised.value)


@pytest.mark.parametrize("text", [b"", b"abc", b"#" * 40, b"\xff" * 40])
def test_a_secret_that_is_damaged_is_told(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    keys.replaced(path / "feed.secret", text)
    with pytest.raises(KeyringError, match=r"feed.secret has no secret key of 'feed': it is dam"):
        ring.secret_of("feed")


# Reading it again.


def test_a_keyring_that_did_not_change_is_not_reloaded(tmp_path: Path) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    before = ring.members
    os.utime(tmp_path / "keys" / "desk.members")
    assert not ring.reload()
    assert ring.members is before


def test_a_list_that_changed_is_taken_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    before = ring.members
    revoke(str(path), "screen")
    assert ring.reload()
    assert [*ring.members.by_name] == ["feed"]
    assert [*before.by_name] == ["feed", "screen"]
    assert ring.problem == ""


def test_an_exchange_that_no_date_size_or_number_of_the_file_shows_is_not_missed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    file = path / "desk.members"
    before = file.stat()
    for _ in range(20):  # the file system gives the same inode again and again
        text = ring.members.text.replace("number = 2", "number = 3").replace("screen", "sniper")
        with file.open("r+") as same:
            same.write(text)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = file.stat()
        assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
            before.st_mtime_ns,
            before.st_size,
            before.st_ino,
        )
        assert ring.reload()
        assert "sniper" in ring.members.by_name
        text = ring.members.text.replace("sniper", "screen").replace("number = 3", "number = 2")
        with file.open("r+") as same:
            same.write(text)
        ring = Keyring.load(path)


@pytest.mark.parametrize("name", ["desk.members", "desk.seal", "."])
def test_a_file_that_others_can_write_meanwhile_is_a_problem_and_changes_nothing(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    before = ring.members, ring.desk_secrets
    mode = stat.S_IMODE((path / name).stat().st_mode)
    (path / name).chmod(mode | 0o022)
    assert not ring.reload()
    assert "chmod" in ring.problem
    assert (ring.members, ring.desk_secrets) == before
    (path / name).chmod(mode)
    assert not ring.reload()
    assert ring.problem == ""


def test_a_list_that_is_damaged_or_gone_is_a_problem_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    before, text = ring.members, (path / "desk.members").read_bytes()
    for _ in range(2):  # once more: it is said again
        keys.replaced(path / "desk.members", b"number = 9\ncolour = 1")
        assert not ring.reload()
        assert not ring.reload()
        assert "'colour'" in ring.problem
    (path / "desk.members").unlink()
    assert not ring.reload()
    assert "has no desk.members" in ring.problem
    path.rename(tmp_path / "moved")
    assert not ring.reload()
    assert "there is no such directory" in ring.problem
    assert ring.members is before
    (tmp_path / "moved").rename(path)
    (path / "desk.members").write_bytes(text)
    assert not ring.reload()
    assert ring.problem == ""


def test_an_older_list_is_not_taken_since_it_could_let_a_revoked_member_in_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    old = (path / "desk.members").read_bytes()
    revoke(str(path), "screen")
    assert ring.reload()
    keys.replaced(path / "desk.members", old)
    for _ in range(2):
        assert not ring.reload()
        assert "screen" not in ring.members.by_name
        assert "has the number 2, and this process has read 3" in ring.problem
        assert "write `number = 4` in it on the host that keeps the list" in ring.problem
        assert "write `number = 4` in it" in ring.problem
    keys.replaced(path / "desk.members", old.replace(b"number = 2", b"number = 4"))
    assert ring.reload()
    assert "screen" in ring.members.by_name
    assert ring.problem == ""


def test_a_list_that_was_changed_by_hand_and_kept_its_number_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    text = (path / "desk.members").read_text()
    keys.replaced(path / "desk.members", f'{text}"{A}" = "old"\n')
    assert ring.reload()
    assert (ring.members.number, ring.members.revoked) == (2, {A: "old"})


def test_a_damaged_desk_secret_holds_up_no_revocation(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    secrets = ring.desk_secrets
    keys.replaced(path / "desk.seal", b"none")
    revoke(str(path), "screen")
    assert ring.reload()
    assert "screen" not in ring.members.by_name
    assert "desk.seal, line 1" in ring.problem
    assert ring.desk_secrets == secrets


def test_threads_that_read_while_the_list_changes_see_one_list_or_another(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "screen")
    key = ring.members.by_name["screen"].key
    wrong: list[object] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            ring.reload()
            members = ring.members
            is_there = "screen" in members.by_name
            if is_there == (key in members.revoked) or is_there != (key in members.by_key):
                wrong.append(members)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    first = ring.members
    for number in range(10, 40, 2):
        for text in (first.without("screen").text, first.text):
            number += 1
            _, _, rest = text.partition("\n")
            keys.replaced(path / "desk.members", f"number = {number}\n{rest}")
    is_over.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    ring.reload()
    assert (ring.members.number, ring.problem) == (40, "")


# No secret is shown.


def shown(value: object) -> Iterator[str]:
    yield repr(value)
    yield str(value)
    yield f"{value!r:>50}"
    yield repr(getattr(value, "__dict__", None))
    yield repr([getattr(value, each, None) for each in dir(value) if each.startswith("_")])


def test_nothing_that_is_shown_of_a_keyring_has_a_secret(tmp_path: Path) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    secrets = {ring.secret_of("feed"), ring.desk_secrets[0].value.hex()}
    secrets.add(repr(ring.desk_secrets[0].value))
    for value in (ring, copy.copy(ring), copy.deepcopy(ring)):
        for text in shown(value):
            assert not any(each in text for each in secrets)
    with pytest.raises(TypeError):
        vars(ring)
    assert repr(ring) == f"<Keyring {tmp_path}/keys number=1 members=1>"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_keyring_cannot_be_pickled(tmp_path: Path, protocol: int) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    with pytest.raises(TypeError, match=r"cannot be pickled.*pass its \.path, and Keyring\.load"):
        pickle.dumps(ring, protocol)
    with pytest.raises(TypeError, match="is not pickled"):
        pickle.dumps(Hidden(b"secret"), protocol)


def test_a_traceback_with_all_variables_has_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    ring = keys.make(path, "feed")
    member, desk = ring.secret_of("feed"), ring.desk_secrets[0].value
    other = zmq.curve_keypair()[1]
    texts = {"feed.secret": [other, other[:-1], b"0" * 5000, other + other]}
    texts["desk.seal"] = [b"x" + desk.hex().encode(), desk.hex().encode() * 100]
    texts["desk.seal"].append(desk.hex().encode() + b"\n" + desk.hex().encode())
    words = [member, desk.hex(), repr(desk)[2:-1], other.decode(), "0" * 50]
    count = 0
    for name, wrongs in texts.items():
        before = (path / name).read_bytes()
        for wrong in wrongs:
            keys.replaced(path / name, wrong)
            with pytest.raises(KeyringError) as raised:
                opened(path, "feed")
            text = with_variables(raised)
            assert "aiobus/keyring" in text
            assert "self = " in text
            assert not any(each in text for each in words)
            count += 1
            keys.replaced(path / name, before)
    assert count == 7


def with_variables(raised: "pytest.ExceptionInfo[Exception]") -> str:
    """The traceback with the variables of all frames but the outermost, which is the test."""
    inner, error = raised.tb.tb_next, raised.value
    chain = traceback.TracebackException(type(error), error, inner, capture_locals=True)
    return "".join(chain.format())


def seals(secrets: tuple[Hidden, ...]) -> tuple[bytes, Seal, bytes]:
    """The first line of a guest, the registry's end of the connection, and its answer."""
    first = opening(secrets, new_nonce())
    return first, *answered(first[:-1], secrets, new_nonce())


IN_THE_SEAL: dict[str, Callable[[tuple[Hidden, ...]], object]] = {
    "a guest without keys": lambda desk: answered(b'["hello",1,"a","b"]', desk, new_nonce()),
    "no secret in common": lambda desk: answered(
        opening([Hidden(bytes(32))], new_nonce())[:-1], desk, new_nonce()
    ),
    "a registry without keys": lambda desk: accepted(seals(desk)[0], desk, b'["roster",1,[]]'),
    "an answer to another guest": lambda desk: accepted(
        opening(desk, new_nonce()), desk, seals(desk)[2][:-1]
    ),
    "an altered line": lambda desk: seals(desk)[1].open(b"x" * 80),
    "what is no line": lambda desk: seals(desk)[1].seal(None),  # type: ignore[arg-type]
    "what is no nonce": lambda desk: Seal(desk[0], b"", None, is_registry=True),  # type: ignore[arg-type]
    "what is no answer": lambda desk: accepted(seals(desk)[0], desk, None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("fails", IN_THE_SEAL)
def test_a_traceback_of_the_seal_with_all_variables_has_no_secret(
    tmp_path: Path, fails: str
) -> None:
    desk = keys.make(tmp_path / "keys", "feed").desk_secrets
    words = [desk[0].value.hex(), repr(desk[0].value)[2:-1]]
    with pytest.raises((ProtocolError, AttributeError, TypeError)) as raised:
        IN_THE_SEAL[fails](desk)
    text = with_variables(raised)
    assert "aiobus/discovery/seal.py" in text
    assert "desk = " in text
    assert not any(each in text for each in words)


# A bus with a keyring.


def test_a_bus_on_tcp_takes_a_keyring_and_passes_it_on(tmp_path: Path) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    mesh: Any = adapter("tcp://127.0.0.1:7555", Limits(), ring)
    assert mesh.discovery.keyring is ring
    assert mesh.network.keyring is ring
    plain: Any = adapter("tcp://127.0.0.1:7555", Limits())
    assert plain.discovery.keyring is None
    assert isinstance(plain.network, ZmqNetwork)
    assert not isinstance(plain.network, KeyedNetwork)


@pytest.mark.parametrize("url", ["ipc://desk", "inproc://"])
def test_a_keyring_where_it_would_protect_nothing_is_refused(tmp_path: Path, url: str) -> None:
    ring = keys.make(tmp_path / "keys", "feed")
    with pytest.raises(ValueError, match=r"has no keys; leave keyring= out, or use tcp://") as told:
        AsyncEventBus(url, keyring=ring)
    assert url in str(told.value)


@pytest.mark.parametrize("wrong", ["keys", Path("keys"), b"keys", True, Members()])
def test_a_keyring_that_is_none_is_a_type_error_with_a_hint(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"aiobus.Keyring is needed, such as Keyring.load\('keys'"):
        AsyncEventBus("tcp://127.0.0.1:7555", keyring=wrong)


def test_the_environment_has_the_keyring_of_a_tcp_bus_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    keys.make(path, "feed")
    other = keys.make(tmp_path / "other", "feed")
    monkeypatch.setenv("AIOBUS_KEYRING", str(path))
    mesh: Any = adapter("tcp://127.0.0.1:7555", Limits())
    assert mesh.network.keyring.path == str(path)
    given: Any = adapter("tcp://127.0.0.1:7555", Limits(), other)
    assert given.network.keyring is other
    local: Any = adapter("ipc://desk", Limits())
    assert not isinstance(local.network, KeyedNetwork)
    monkeypatch.setenv("AIOBUS_KEYRING", "")
    plain: Any = adapter("tcp://127.0.0.1:7555", Limits())
    assert not isinstance(plain.network, KeyedNetwork)


def test_a_keyring_of_the_environment_that_cannot_be_used_is_told_with_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOBUS_KEYRING", f"{tmp_path}/keys")
    with pytest.raises(KeyringError, match=rf"\(AIOBUS_KEYRING is '{tmp_path}/keys'\)"):
        AsyncEventBus("tcp://127.0.0.1:7555")


async def test_a_member_that_other_hosts_can_reach_does_not_join_without_a_keyring() -> None:
    assert Rendezvous("127.0.0.1:7555").is_loopback
    discovery = Rendezvous("127.0.0.1:7555,192.0.2.1:7555")
    assert not discovery.is_loopback
    with pytest.raises(KeyringError) as raised:
        await discovery.join("feed", pytest.fail, pytest.fail)
    assert "tcp://127.0.0.1:7555,192.0.2.1:7555 can be reached by other hosts" in str(raised.value)
    assert "`python -m aiobus keygen feed`" in str(raised.value)
    assert "keyring=Keyring.load('keys')" in str(raised.value)


def test_another_list_of_the_same_number_lets_no_revoked_key_in_again(
    tmp_path: Path,
) -> None:
    """Two hosts have changed the list: one has revoked `risk`, the other has added a member."""
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "risk")
    both = ring.members
    (path / "desk.members").write_text(both.without("risk").text)
    assert ring.reload()
    other = both.with_member(Member("third", keys.key()))
    assert other.number == ring.members.number
    (path / "desk.members").write_text(other.text)
    ring.reload()
    assert "risk" not in ring.members.by_name
    assert "lets in risk, whose key was revoked" in ring.list_problem


def test_a_list_with_the_number_0_is_none() -> None:
    with pytest.raises(KeyringError, match="from 1 on"):
        Members.parse("number = 0\n[revoked]\n", "desk.members")


def test_a_list_that_was_copied_in_part_is_not_taken(tmp_path: Path) -> None:
    """Cut between two members it is a list, on which the members behind the cut seem revoked."""
    path = tmp_path / "keys"
    ring = keys.make(path, "feed", "risk")
    text = ring.members.text.replace(
        f"number = {ring.members.number}", f"number = {ring.members.number + 1}"
    )
    cut = text[: text.index('[members."risk"]')]
    (path / "desk.members").write_text(cut)
    ring.reload()
    assert {*ring.members.by_name} == {"feed", "risk"}
    assert "was all of it copied" in ring.list_problem
    (path / "desk.members").write_text(text)
    assert ring.reload()
    assert ring.list_problem == ""


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_while_another_thread_reads_the_keyring_can_read_it(
    tmp_path: Path,
) -> None:
    """It waited for that thread for ever, which a fork does not copy."""
    ring = keys.make(tmp_path / "keys", "feed", "screen")
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            ring.reload()

    reading = threading.Thread(target=read)
    reading.start()
    try:
        for _ in range(5):
            if (child := os.fork()) == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)  # ends one that hangs
                ring.reload()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        is_over.set()
        reading.join()
