"""The state of the whole fleet: which instances serve, how many viewers, how many positions."""
