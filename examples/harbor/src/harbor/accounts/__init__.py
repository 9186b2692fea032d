"""Accounts: signing up and in, session tokens, who a request is from."""
