"""What is live: connections of pages over Socket.IO, who is online, and what they are told."""
