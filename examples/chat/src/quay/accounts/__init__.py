"""Users: registering, signing in, tokens."""
