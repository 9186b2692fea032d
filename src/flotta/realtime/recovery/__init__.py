"""Connection state recovery: a client that lost its connection, or its instance, gets back its session id, its rooms,
its data, and every event that it missed, in order and once. On any instance, and on Node servers of the same cluster.

What travels with every event is its id in the stream, as the last argument; a client that comes back says which one it
had last. What makes that enough:

- `session` what is kept of a socket in Redis, while it is connected and for a while after;
- `plan` what a client that comes back must be sent, and whether all of it is still there;
- `history` the newest events of the stream, once per process, so that a thousand clients of a dead instance do not
  read the stream a thousand times;
- `store` the keys in Redis, one atomic step each;
- `keeper` the shell: it saves, claims, replays.
"""

from __future__ import annotations

__all__: list[str] = []
