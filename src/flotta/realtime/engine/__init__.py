"""Engine.IO's shell: the sessions of one process, whatever is spoken above them: Socket.IO (`Core`), or nothing
(`EngineServer`).

Here is what owns, schedules and ends things (clients, deadlines, the HTTP request of a session). What only decides, the
protocol's packets and machines, is in ``engineio/``; what moves bytes is in ``transports/``.
"""

from __future__ import annotations

__all__: list[str] = []
