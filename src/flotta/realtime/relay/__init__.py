"""Sessions that other instances hold: their polling requests, their WebSockets, and the move of a session to this one.

``wire`` what instances say to each other; ``post`` how it travels; ``leases`` who lives; ``asks`` polling requests;
``budget`` and ``pace`` what may be on its way at once; ``tunnels`` WebSockets whose session is elsewhere;
``departures`` and ``arrivals`` sessions on their way, ``ground`` what that takes, ``taps`` what they hear meanwhile,
``travel`` what goes along; ``relay`` all of it for one server.
"""

from __future__ import annotations

__all__: list[str] = []
