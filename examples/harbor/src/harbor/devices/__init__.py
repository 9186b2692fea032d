"""Devices: what an account owns and what reports positions, and the tokens with which they do."""
