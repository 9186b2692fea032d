"""Areas that accounts draw on the map, and the alerts when vessels enter and leave them."""
