"""The seal of a rendezvous connection: each line is by a holder of the desk's secret, for this
connection, in this direction and at this place.

Owns the first line of a guest, `["seal", 1, nonce, [id, ...]]`, the answer of a registry, `["seal",
1, nonce, id]`, and the code in front of each line from that answer on. Pure: secrets and nonces are
given. It hides nothing: whoever reads along sees names and ports.

A secret stays in its `Hidden` up to the call that needs its bytes: a traceback may show what a
function has in its variables.
"""

import hmac
import re
import secrets
from collections.abc import Sequence

import orjson

from aiobus.discovery.refusal import Denied, is_of_another_version, kind_of, parse_denied
from aiobus.discovery.roster import VERSION, ProtocolError, parse_line
from aiobus.keyring.files import Hidden
from aiobus.refusals import DENIALS

__all__ = ["Seal", "accepted", "answered", "id_of", "new_nonce", "opening"]

MAX_IDS = 16
"""Secrets that a guest offers, the newest first; two are enough to change one without an outage."""
MAC = 64
"""Characters of the code in front of a line."""
NONCE = re.compile("[0-9a-f]{32}")
ID = re.compile("[0-9a-f]{16}")


class Seal:
    """One end of a sealed connection. `first` is the first line of the guest and `nonce` that of
    the registry: a line of another connection has another code. Its repr has no secret.
    """

    __slots__ = ("_context", "_heard", "_me", "_other", "_secret", "_sent")

    def __init__(self, secret: Hidden, first: bytes, nonce: str, *, is_registry: bool) -> None:
        self._secret = secret
        self._context = b"\n%b\n%b\n" % (first, nonce.encode())
        self._me, self._other = (b"registry", b"guest") if is_registry else (b"guest", b"registry")
        self._sent = self._heard = 0

    def seal(self, line: bytes) -> bytes:
        """`line`, with or without its end, as it is to be sent next. What is sealed must be sent,
        whole and in this order, or the other end refuses what follows.
        """
        line = line.removesuffix(b"\n")
        self._sent += 1
        return self._mac(self._me, self._sent, line) + line + b"\n"

    def open(self, line: bytes) -> bytes:
        """What the other end said in `line`. Raises ProtocolError if it is not the very line that
        the other end sent next; then the connection is to be ended.
        """
        self._heard += 1
        said = line[MAC:]
        if not hmac.compare_digest(line[:MAC], self._mac(self._other, self._heard, said)):
            raise ProtocolError("a line that is not sealed by this desk's secret for this place")
        return said

    def is_by(self, desk_secrets: Sequence[Hidden]) -> bool:
        """True if the secret of this connection is among these."""
        return any(self._secret == each for each in desk_secrets)

    def _mac(self, direction: bytes, number: int, line: bytes) -> bytes:
        # The lines and nonces have no newline, so the parts cannot be divided otherwise.
        text = b"aiobus rendezvous %d %b %d%b%b" % (VERSION, direction, number, self._context, line)
        return hmac.digest(self._secret.value, text, "sha256").hex().encode()


def new_nonce() -> str:
    """A nonce that no other connection has."""
    return secrets.token_hex(16)


def id_of(secret: Hidden) -> str:
    """By which two ends find a secret that both have. It tells nothing of the secret."""
    return hmac.digest(secret.value, b"aiobus rendezvous %d id" % VERSION, "sha256").hex()[:16]


def opening(desk_secrets: Sequence[Hidden], nonce: str) -> bytes:
    """The first line of a guest with these secrets, the newest first. Not sealed."""
    ids = [id_of(each) for each in desk_secrets[:MAX_IDS]]
    return orjson.dumps(["seal", VERSION, nonce, ids]) + b"\n"


def answered(first: bytes, desk_secrets: Sequence[Hidden], nonce: str) -> tuple[Seal, bytes]:
    """The end of a registry with these secrets on a connection whose first line is `first`, and its
    answer. Raises Denied if no secret is common to both or the guest has none, and ProtocolError.
    """
    if is_of_another_version(first):
        raise _denied("version")
    if kind_of(first) == "hello":
        raise _denied("keys")
    match parse_line(first, "seal"):
        case [str(theirs), [*ids]] if NONCE.fullmatch(theirs) and len(ids) <= MAX_IDS:
            for secret in desk_secrets:
                if (found := id_of(secret)) in ids:
                    seal = Seal(secret, first, nonce, is_registry=True)
                    return seal, seal.seal(orjson.dumps(["seal", VERSION, nonce, found]))
            raise _denied("secret")
    raise ProtocolError("a seal of another shape")


def accepted(first: bytes, desk_secrets: Sequence[Hidden], answer: bytes) -> Seal:
    """The end of a guest whose first line was `first`, with these secrets, which has got `answer`.
    Raises Denied, with what to say of the registry, if it has no secret in common or no keys, and
    ProtocolError.
    """
    check_denied(answer)
    if kind_of(answer) == "roster":
        raise Denied("plain", DENIALS["plain"].of_registry)
    match parse_line(answer[MAC:], "seal"):
        case [str(nonce), str(id)] if NONCE.fullmatch(nonce) and ID.fullmatch(id):
            for secret in desk_secrets[:MAX_IDS]:
                if id_of(secret) == id:
                    seal = Seal(secret, first.removesuffix(b"\n"), nonce, is_registry=False)
                    try:
                        seal.open(answer)
                    except ProtocolError:
                        break  # an id can be copied
                    return seal
            raise Denied("secret", DENIALS["secret"].of_registry)
    raise ProtocolError("a seal of another shape")


def check_denied(line: bytes) -> None:
    """Raises Denied, with what to say of the registry, if `line` is its reason to end a connection.
    For guests with keys and without.
    """
    if code := parse_denied(line):
        raise Denied(code, DENIALS[code].of_registry)


def check_plain(first: bytes) -> None:
    """Raises Denied, with what to say of the guest, if the first line of a guest is one with which
    a registry without keys cannot go on. Anything else is not judged.
    """
    if is_of_another_version(first):
        raise _denied("version")
    if kind_of(first) == "seal":
        raise _denied("plain")


def _denied(code: str) -> Denied:
    return Denied(code, DENIALS[code].of_guest)
