"""N instances of one service: spawned, heard, brought back, stopped. Used by ``flotta run``.

``states`` and ``plan`` decide (pure), ``shell`` does; ``child`` is one process, ``sockets`` the address, ``launch``
command lines and environments, ``output`` and ``footer`` what it looks like (pure), ``screen`` where it is shown,
``warden`` what ends the children of a killed supervisor, ``embedded`` and ``keeper`` the servers of a folder,
``reload`` watched files, ``probe`` whether the service answers.
"""

from __future__ import annotations

from flotta.supervisor.embedded import KINDS, EmbeddedServers, running_url, wanted
from flotta.supervisor.options import Companion, RunOptions
from flotta.supervisor.shell import Supervisor

__all__ = ["KINDS", "Companion", "EmbeddedServers", "RunOptions", "Supervisor", "running_url", "wanted"]
