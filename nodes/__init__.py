"""Steps: the middleware around every node, what a node may reach, and ready nodes."""
