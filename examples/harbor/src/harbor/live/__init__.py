"""The live side: Socket.IO connections of pages, and what is sent to them."""
