"""Quay: a chat on several instances, once on FastAPI and once on Flask.

``on_fastapi`` and ``on_flask`` hold what differs: the routes. Everything else is shared: ``accounts``, ``rooms``,
``live`` (Socket.IO), the page, the migrations and seeds. ``parts`` puts one instance together.
"""
