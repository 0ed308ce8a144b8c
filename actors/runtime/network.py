"""Network interface of this node's address, for gloo and NCCL, which otherwise guess by host name and guess wrong."""

import fcntl
import os
import socket
import struct

SIOCGIFADDR = 0x8915


def interface_of(address: str) -> str | None:
    """Return the name of the interface with this IPv4 address, None if none has it (behind address translation)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]
            except OSError:  # the interface has no IPv4 address
                continue
            if socket.inet_ntoa(found) == address:
                return name
    return None


def use_interface_of(address: str) -> None:
    """Have this process's collectives use the interface of this address, unless the user has set another."""
    if (name := interface_of(address)) is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)
