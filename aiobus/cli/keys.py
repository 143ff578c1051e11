"""`aiobus keygen NAME` and `aiobus members`: the keys of a desk that reaches across machines.

Owns the arguments of these commands, and what is told to do next. They need no extra: a host on
which a bot runs has them by `python -m aiobus`. Must not know how the files are written.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import orjson

from aiobus.cli import WIDTH, Story
from aiobus.errors import KeyringError
from aiobus.keyring import quoted
from aiobus.keyring.changes import add, is_kept, listed, make_key, retire, revoke, rotate
from aiobus.keyring.files import DESK, LIST, SUFFIX
from aiobus.keyring.members import Member, Members, Rules, bad_key_text, bad_rule
from aiobus.query import bad_name

__all__ = ["KEYGEN", "MEMBERS", "STORIES", "main"]

DIRECTORY = "keys"
"""In the working directory: where a keyring is if nothing else is said."""
OPTIONS = ("--keyring=", "--publish=", "--subscribe=")
"""What begins so may be as long as a key, and of the same characters."""
PUBLISH = "It may publish these types alone, such as TRADE,QUOTE; '' for none."
SUBSCRIBE = "It may subscribe to these types alone; '' for none."


class _Parser(argparse.ArgumentParser):
    """Its help looks like that of the other commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH),
            allow_abbrev=False,
            **options,
        )

    def format_help(self) -> str:
        return super().format_help().replace("usage:", "Usage:", 1)

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{message}\nTry '{self.prog} --help'\n")
        raise SystemExit(2)


def _name(text: str) -> str:
    if reason := bad_name(text):
        raise argparse.ArgumentTypeError(reason)
    return text


def _no_option(word: str) -> str:
    """A key that another program has made may begin with `-`: behind a space it is no option."""
    is_option = word.startswith(OPTIONS) or not word.startswith("-")
    return word if is_option or bad_key_text(word) else f" {word}"


def _key(text: str) -> str:
    text = text.removeprefix(" ")
    if reason := bad_key_text(text):
        hint = "; put it in quotes: '...'" if len(text) < 40 else ""
        raise argparse.ArgumentTypeError(f"{reason}{hint}")
    return text


def _types(text: str) -> frozenset[str]:
    types = frozenset(each.strip() for each in text.split(",") if each.strip())
    for each in sorted(types):
        if reason := bad_rule(each):
            raise argparse.ArgumentTypeError(reason)
    return types


def _with_keyring(parser: argparse.ArgumentParser, *, is_inner: bool = False) -> None:
    parser.add_argument(
        "--keyring",
        metavar="DIR",
        default=argparse.SUPPRESS if is_inner else None,
        help=f"The directory with the keys; else AIOBUS_KEYRING, else {DIRECTORY}.",
    )


def _with_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--publish", metavar="T,T", type=_types, help=PUBLISH)
    parser.add_argument("--subscribe", metavar="T,T", type=_types, help=SUBSCRIBE)


def _keygen_parser() -> _Parser:
    parser = _Parser(
        prog="aiobus keygen",
        description=(
            "Make the key of a bus, on the host where it runs. The secret stays there, in\n"
            f"NAME{SUFFIX}. The public key goes on the list of members, which one host keeps and\n"
            "every host has. A copy of the list stays as it is. Without a list a desk is begun."
        ),
        epilog=KEYGEN.epilog.replace("\b\n", ""),
    )
    parser.add_argument("name", metavar="NAME", type=_name, help="The name of the bus.")
    _with_keyring(parser)
    _with_rules(parser)
    return parser


def _members_parser() -> _Parser:
    parser = _Parser(
        prog="aiobus members",
        description="Show who is a member of a desk, or change it.",
        epilog=MEMBERS.epilog.replace("\b\n", ""),
    )
    _with_keyring(parser)
    parser.add_argument("--json", action="store_true", help="The list as a line of JSON.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        inner = actions.add_parser(name, help=help, description=help)
        _with_keyring(inner, is_inner=True)
        return inner

    adding = action("add", "Put a bus on the list, with the public key that keygen has printed.")
    adding.add_argument("name", metavar="NAME", type=_name, help="The name of the bus.")
    adding.add_argument("key", metavar="KEY", type=_key, help="Its public key, in quotes.")
    _with_rules(adding)
    revoking = action("revoke", "Take a bus off the list: its key is never accepted again.")
    revoking.add_argument("name", metavar="NAME", type=_name, help="The name of the bus.")
    action("rotate", "Make a new desk secret; the old ones are accepted until `retire`.")
    action("retire", "Drop all desk secrets but the newest.")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run `keygen` or `members`, the first of the arguments; returns the exit code."""
    command, *words = arguments
    try:
        parser = _keygen_parser() if command == "keygen" else _members_parser()
        given = parser.parse_args([_no_option(each) for each in words])
        directory = given.keyring or os.environ.get("AIOBUS_KEYRING") or DIRECTORY
        told = _TELL[getattr(given, "action", "keygen")](directory, given)
        sys.stdout.write(told)
        sys.stdout.flush()
    except SystemExit as end:  # an argument that is wrong, or a help
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyringError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _keygen(directory: str, given: argparse.Namespace) -> str:
    name, rules = given.name, Rules(given.publish, given.subscribe)
    made = make_key(directory, name, rules)
    more, path = _options(rules), os.path.join(directory, LIST)
    lines = [
        f"the public key of {name}: {quoted(made.public)}",
        f"its secret is in {os.path.join(directory, name + SUFFIX)}, and stays on this host",
    ]
    if made.is_begun:
        lines += [
            f"a desk is begun: {path} (number {made.members.number}) and {DESK}, its secret",
            "",
            "If this desk is there already, on another host, run there:",
            f"  python -m aiobus members add {name} {quoted(made.public)}{more}",
            f"and copy {LIST} and {DESK} from there to here, over these two.",
            "If it is new: make keys on the other hosts by keygen, add each here by that line, and",
            f"copy {LIST} and {DESK} to them (scp -p: {DESK} is secret).",
        ]
    elif not made.is_listed:
        lines += [
            f"{path} (number {made.members.number}) is a copy, and stays as it is",
            "",
            "Run on the host that keeps the list:",
            f"  python -m aiobus members add {name} {quoted(made.public)}{more}",
            f"and copy {LIST} from there to here. If that is this host, and the list was changed",
            "by hand, run that line here.",
        ]
    else:
        lines += [
            f"it is on the list here, which has the number {made.members.number} now",
            "",
            f"Copy {path} to every host of the desk. If the list",
            "is kept on another host, run there, and copy the list from there:",
            f"  python -m aiobus members add {name} {quoted(made.public)}{more}",
        ]
    return _text(lines)


def _options(rules: Rules) -> str:
    told = ""
    for what in ("publish", "subscribe"):
        if (types := getattr(rules, what)) is not None:
            told += f" --{what} {','.join(sorted(types)) or quoted('')}"
    return told


def _add(directory: str, given: argparse.Namespace) -> str:
    rules = Rules(given.publish, given.subscribe)
    before, was_kept = listed(directory)[0].by_name.get(given.name), is_kept(directory)
    members, is_changed = add(directory, Member(given.name, given.key, rules))
    if not is_changed:
        return _text([f"{given.name} is on the list already (number {members.number})"])
    lines = [f"{given.name} is on the list (number {members.number})"]
    if before is not None:
        told, now = _options(before.rules) or " none", _options(rules) or " none: it may do all"
        lines.append(f"its rules were{told}, and are{now}")
    return _text([*lines, _copy(directory), *_moved(was_kept)])


def _copy(directory: str) -> str:
    return f"Copy {os.path.join(directory, LIST)} to every host: a bus reads it again by itself."


def _moved(was_kept: bool) -> list[str]:
    """What is said after a change of a list that no command here had changed before."""
    if was_kept:
        return []
    return [
        "It was a copy, or changed by hand: from now on the list is kept here. Where it was kept",
        "before, copy it there before anything is changed, or one of the two is refused.",
    ]


def _revoke(directory: str, given: argparse.Namespace) -> str:
    was_kept = is_kept(directory)
    members = revoke(directory, given.name)
    where = "" if directory == DIRECTORY else f" --keyring {shlex.quote(directory)}"
    return _text(
        [
            f"{given.name} is revoked (number {members.number}). Now:",
            f"1. Copy {os.path.join(directory, LIST)} to every host. Until a host has it,",
            f"   {given.name} is let in there; `aiobus doctor URL` names the hosts that have not.",
            f"2. {given.name} has known the secret by which buses find each other: rotate it,",
            f"     python -m aiobus members rotate{where}",
            f"   copy {DESK} to every host (scp -p: it is secret), and when all have it:",
            f"     python -m aiobus members retire{where}",
            f"   and copy {DESK} once more.",
            f"3. Remove {given.name}{SUFFIX} on its host.",
            *_moved(was_kept),
        ]
    )


def _rotate(directory: str, given: argparse.Namespace) -> str:
    count = rotate(directory)
    path = os.path.join(directory, DESK)
    if count == 1:
        return _text([f"{path} has the first secret of the desk: copy it to every host (scp -p)"])
    where = "" if directory == DIRECTORY else f" --keyring {shlex.quote(directory)}"
    return _text(
        [
            f"{path} has a new secret, and {count - 1:,} old that are accepted as well. Now:",
            "1. Copy it to every host (scp -p: it is secret). A bus reads it again by itself.",
            f"2. When all have it: python -m aiobus members retire{where}",
            "   and copy it once more. Until then who knows an old secret can use it.",
        ]
    )


def _retire(directory: str, given: argparse.Namespace) -> str:
    dropped, path = retire(directory), os.path.join(directory, DESK)
    if not dropped:
        return _text([f"{path} has one secret, the newest: there is nothing to drop"])
    return _text(
        [
            f"{path} has only the newest secret: {dropped:,} dropped",
            "Copy it to every host (scp -p). A host that has not even that one is alone then.",
        ]
    )


def _list(directory: str, given: argparse.Namespace) -> str:
    members, here = listed(directory)
    if given.json:
        return orjson.dumps(_plain(members, here)).decode() + "\n"
    rows = [("NAME", "KEY", "PUBLISH", "SUBSCRIBE", "SECRET")]
    rows += [
        (
            each.name,
            each.key,
            _rule(each.rules.publish),
            _rule(each.rules.subscribe),
            "here" if each.name in here else "-",
        )
        for each in sorted(members.by_name.values(), key=lambda each: each.name)
    ]
    rows += [(name, key, "revoked", "revoked", "-") for key, name in _revoked(members)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    path = os.path.join(directory, LIST)
    return _text([*lines, "", f"{path}: number {members.number}, digest {members.digest}"])


def _rule(types: frozenset[str] | None) -> str:
    return "*" if types is None else ",".join(sorted(types)) or "none"


def _revoked(members: Members) -> list[tuple[str, str]]:
    return sorted(members.revoked.items(), key=lambda each: (each[1], each[0]))


def _plain(members: Members, here: frozenset[str]) -> dict[str, Any]:
    def rule(types: frozenset[str] | None) -> list[str] | None:
        return None if types is None else sorted(types)

    return {
        "number": members.number,
        "digest": members.digest,
        "members": [
            {
                "name": each.name,
                "key": each.key,
                "publish": rule(each.rules.publish),
                "subscribe": rule(each.rules.subscribe),
                "secret": each.name in here,
            }
            for each in sorted(members.by_name.values(), key=lambda each: each.name)
        ],
        "revoked": [{"name": name, "key": key} for key, name in _revoked(members)],
    }


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


_TELL: dict[str | None, Callable[[str, argparse.Namespace], str]] = {
    "keygen": _keygen,
    None: _list,
    "add": _add,
    "revoke": _revoke,
    "rotate": _rotate,
    "retire": _retire,
}

KEYGEN = Story(
    name="keygen",
    run=lambda words: main(["keygen", *words]),
    summary="Make the key of a bus, on the host where it runs.",
    examples={
        "aiobus keygen feed": "in ./keys, which is made if it is not there",
        "aiobus keygen screen --publish '' --subscribe TRADE,FILL": "a bus that only looks on",
        "aiobus keygen feed --keyring /etc/desk": "",
    },
    codes={
        0: "the key is made, and on the list if that is kept here; else the line to run is printed",
        1: "it is not: the secret is there already, or the keyring cannot be used as it is",
    },
)
MEMBERS = Story(
    name="members",
    run=lambda words: main(["members", *words]),
    summary="Show who is a member of a desk, or change it.",
    examples={
        "aiobus members": "the list in ./keys",
        "aiobus members --json | jq -r '.members[].name'": "for a program",
        "aiobus members add strategy 'Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID'": "",
        "aiobus members revoke strategy": "says what to do then",
        "aiobus members rotate": "a new desk secret; `retire` drops the old ones",
    },
    codes={
        0: "the list is shown, or changed",
        1: "nothing is changed: there is no list, no such member, or the name or key is taken",
    },
)
STORIES = (KEYGEN, MEMBERS)
