"""Sharing: who else may see an account's vessels."""
