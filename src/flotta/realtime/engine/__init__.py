"""Engine.IO sessions of one process, whatever is spoken above them: Socket.IO (`Core`), or nothing (`EngineServer`)."""

from __future__ import annotations

__all__: list[str] = []
