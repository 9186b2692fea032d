"""The replay feed: plays the recorded hour as a fleet of devices would report it. A client of Harbor's HTTP API."""
