"""Socket.IO 5 without I/O: packets with their attachments, and the machine of one connection's namespaces.
Pure: what runs them is ``client.py`` and ``core.py``.

Protocol: https://socket.io/docs/v4/socket-io-protocol/
"""

from __future__ import annotations

__all__: list[str] = []
