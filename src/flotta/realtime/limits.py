"""How many clients one address may have here. Pure.

Invariant: every client that was counted is counted off exactly once, whatever ends it; without a limit nothing is kept.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final, final

__all__ = ["Addresses", "network_of"]

IPV6_PREFIX: Final = 64
"""RFC 4291 2.5.4: what one household or host is given; single addresses in it cost an attacker nothing."""


def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or a /64 of IPv6. Text that is no address counts as it stands."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ip_network((found, IPV6_PREFIX), strict=False))


@final
class Addresses:
    """Clients by address. ``connections_max`` None: no limit. Who has no address (a Unix socket) never counts."""

    __slots__ = ("_by_client", "_connections_max", "_counts")

    def __init__(self, connections_max: int | None) -> None:
        self._connections_max = connections_max
        self._counts: dict[str, int] = {}
        self._by_client: dict[str, str] = {}

    def is_full(self, address: str) -> bool:
        """One more from ``address`` would be too many."""
        limit = self._connections_max
        return limit is not None and bool(address) and self._counts.get(network_of(address), 0) >= limit

    def enter(self, client: str, address: str) -> None:
        """A client has come from ``address``."""
        if self._connections_max is not None and address and client not in self._by_client:
            network = self._by_client[client] = network_of(address)
            self._counts[network] = self._counts.get(network, 0) + 1

    def leave(self, client: str) -> None:
        """A client is gone; unknown ones are fine."""
        network = self._by_client.pop(client, None)
        if network is None:
            return
        self._counts[network] -= 1
        if not self._counts[network]:
            del self._counts[network]

    def __len__(self) -> int:
        return len(self._counts)
