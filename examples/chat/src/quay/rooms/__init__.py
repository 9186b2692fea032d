"""Rooms, their members and their messages, in PostgreSQL."""
