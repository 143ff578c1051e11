"""The resources that a process has used: processor time, memory, and bytes that came in over TCP.

Owns where the system keeps these figures. Must not know what they are used for. On Linux; elsewhere
what cannot be known is 0.
"""

import os
import resource
import socket
import struct
import sys
from pathlib import Path

__all__ = ["cpu_seconds", "rss", "tcp_received"]

TCP_INFO_BYTES_RECEIVED = 128
"""Where `struct tcp_info` has it, in every kernel since 4.1."""
MIB = 1024 * 1024


def cpu_seconds(pid: int | None = None) -> float:
    """Of all threads of a process, by default this one."""
    if pid is None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int | None = None) -> float:
    """Memory of a process in MiB, by default of this one."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def tcp_received() -> int:
    """Bytes that the open TCP connections of this process have received."""
    if sys.platform != "linux":
        return 0
    received = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as each:
                is_tcp = each.type == socket.SOCK_STREAM and each.family in (
                    socket.AF_INET,
                    socket.AF_INET6,
                )
                if is_tcp and not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    received += struct.unpack_from("Q", info, TCP_INFO_BYTES_RECEIVED)[0]
        except (OSError, struct.error):
            continue  # closed since it was listed
    return received
