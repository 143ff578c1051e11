"""Two hosts with a wire between them: processes in network namespaces of their own, and what a
network does to them.

Owns the namespaces, the TUN device in each and the thread that carries packets from one to the
other, and so loses, delays and cuts them as a test says. Must not know what is sent.

A wire in user space in place of veth, `tc netem` and iptables: it needs no tool, only /dev/net/tun
and the right to make a namespace (kernels without netem are common, machines without iptables as
well); a cut begins and ends at a known moment, loses without a word to either end, and can be one
way; which packets are lost is drawn from a seed. A namespace has no name and ends with the last
process in it, so there is nothing to clean up, however a test ends.
"""

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

from actors import Actor

__all__ = ["Wire", "move", "why_not"]

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, IFF_UP = 0x8914, 0x8916, 0x891C, 0x0001
RTM_NEWROUTE, RTA_OIF, NEW_AND_ACKNOWLEDGED = 24, 4, 0x0405
TUN = "/dev/net/tun"
PACKET = 2048
"""Bytes; more than the 1,500 that the devices take."""


class Wire:
    """Carries packets between two TUN devices, in a thread of its own.

    `cut` has the directions, 0 for "from the first host" and 1 for "from the second", in which
    nothing arrives; `delay` is in seconds; `loss` the share of packets that do not arrive.
    """

    def __init__(self, first: int, second: int, seed: int) -> None:
        self.cut: frozenset[int] = frozenset()
        self.delay = 0.0
        self.loss = 0.0
        self.carried = [0, 0]
        self.lost = [0, 0]
        self._ends = (first, second)
        self._random = Random(seed)
        self._late: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="wire")
        self._thread.start()

    def close(self) -> None:
        """Carry nothing any more."""
        os.close(self._stopped)
        self._thread.join()
        for descriptor in (self._stop, *self._ends):
            os.close(descriptor)

    def _carry(self) -> None:
        poll = select.poll()
        for descriptor in (self._stop, *self._ends):
            poll.register(descriptor, select.POLLIN)
        while True:
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, _, direction, packet = heapq.heappop(self._late)
                self._deliver(direction, packet)
            wait = None if not self._late else max(0.0, self._late[0][0] - now) * 1000
            for descriptor, _ in poll.poll(wait):
                if descriptor == self._stop:
                    return
                self._take(self._ends.index(descriptor))

    def _take(self, direction: int) -> None:
        for _ in range(64):  # the other direction has its turn as well
            try:
                packet = os.read(self._ends[direction], PACKET)
            except OSError:  # nothing more, or its host has ended
                return
            if direction in self.cut or self._random.random() < self.loss:
                self.lost[direction] += 1
            elif self.delay:
                self._number += 1  # what is as late stays in order
                at = time.monotonic() + self.delay
                heapq.heappush(self._late, (at, self._number, direction, packet))
            else:
                self._deliver(direction, packet)

    def _deliver(self, direction: int, packet: bytes) -> None:
        try:
            os.write(self._ends[1 - direction], packet)
        except OSError:  # its queue is full, or its host has ended
            self.lost[direction] += 1
        else:
            self.carried[direction] += 1


async def move(
    actor: Actor, address: str, *, v6: str = "", names: str = "", has_exit: bool = False
) -> int:
    """Move a process that has opened nothing yet into a network of its own, where it is at
    `address`, one of a /16, and at `v6`, one of a /64; the device that its packets come from.

    `names`: what it has in /etc/hosts instead. `has_exit`: it has a default route, which leads to
    the other host.
    """
    with tempfile.TemporaryDirectory(prefix="ab") as folder, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{folder}/door")
        door.listen()
        door.setblocking(False)
        values = {"v6": v6, "names": names, "has_exit": has_exit}
        await actor(MOVE, address=address, door=f"{folder}/door", values=values)
        guest, _ = door.accept()
        with guest:
            _, (device,), _, _ = socket.recv_fds(guest, 1, 1)
    os.set_blocking(device, False)
    return device


MOVE = """
from faults.namespaces import leave_for
leave_for(address, door, **values)
"""


def why_not() -> str:
    """Why this machine has no such networks; nothing when it has."""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    pid = os.fork()
    if pid == 0:
        try:
            enter("10.77.0.1", v6="fd77::1", names="127.0.0.1 localhost\n", has_exit=True)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"no network namespace with a TUN device: {os.strerror(code)}" if code else ""


# In the process that moves.


def leave_for(address: str, door: str, **values: Any) -> None:
    """Enter, and hand the device out."""
    device = enter(address, **values)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(door)
        socket.send_fds(sock, [b"."], [device])
    os.close(device)


def enter(address: str, *, v6: str = "", names: str = "", has_exit: bool = False) -> int:
    """Be in a new network namespace, at `address`. Raises OSError where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    # A user who is not root may have a network where it is root in a user namespace.
    own = CLONE_NEWNET | (CLONE_NEWNS if names else 0)
    if libc.unshare(own | (CLONE_NEWUSER if os.geteuid() else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if names:
        with tempfile.NamedTemporaryFile("w", prefix="ab") as file:
            file.write(names)
            file.flush()
            for source, target, flags in (
                (None, b"/", MS_REC | MS_PRIVATE),  # nothing of this is to be seen outside
                (file.name.encode(), b"/etc/hosts", MS_BIND),
            ):
                if libc.mount(source, target, None, ctypes.c_ulong(flags), None):
                    raise OSError(ctypes.get_errno(), "mount")
    device = os.open(TUN, os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
    # A desk without keys has loopback addresses only: let those of 127.77.0.0/16 be found on the
    # wire.
    Path("/proc/sys/net/ipv4/conf/all/route_localnet").write_text("1")
    with socket.socket() as sock:

        def set_up(name: bytes, address: str, mask: str) -> None:
            for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, mask)):
                packed = socket.inet_aton(value)
                fcntl.ioctl(
                    sock, request, struct.pack("16sHH4s16x", name, socket.AF_INET, 0, packed)
                )
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH22x", name, IFF_UP))

        set_up(b"lo", "127.0.0.1", "255.255.255.255")
        set_up(b"wire", address, "255.255.0.0")
    number = socket.if_nametoindex("wire")
    if v6:
        with socket.socket(socket.AF_INET6) as sock:
            packed = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, v6), 64, number)
            fcntl.ioctl(sock, SIOCSIFADDR, packed)
    if has_exit:
        add_default_route(number)
    return device


def add_default_route(device: int) -> None:
    """Let all that has no other way leave by the device (rtnetlink(7))."""
    attribute = struct.pack("HHI", 8, RTA_OIF, device)
    route = struct.pack("8BI", socket.AF_INET, 0, 0, 0, 254, 3, 253, 1, 0) + attribute
    header = struct.pack("IHHII", 16 + len(route), RTM_NEWROUTE, NEW_AND_ACKNOWLEDGED, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(header + route)
        (code,) = struct.unpack("i", sock.recv(4096)[16:20])
    if code:
        raise OSError(-code, "default route")
