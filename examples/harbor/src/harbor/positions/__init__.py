"""Positions: what a report is, whether it can be true, and its way into the stream."""
