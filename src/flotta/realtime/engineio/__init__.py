"""Engine.IO 4 without I/O: packets, the handshake's rules, the session's machine, who is due when.
Pure: what runs them is in ``engine/``.

Protocol: https://socket.io/docs/v4/engine-io-protocol/
"""

from __future__ import annotations

__all__: list[str] = []
