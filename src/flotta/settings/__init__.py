"""Settings: what the environment and ``flotta.toml`` say, checked once, frozen for the life of the process.

``_parse`` knows what a value may look like, ``_model`` holds the table of settings and reads it, ``secret`` removes
passwords from text. Nothing here does network I/O.
"""

from __future__ import annotations

from flotta.settings._model import FILE_NAME, SettingInfo, Settings, describe
from flotta.settings.secret import Redactor, redact_url

__all__ = ["FILE_NAME", "Redactor", "SettingInfo", "Settings", "describe", "redact_url"]
