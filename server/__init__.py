"""The way in: settings, the one composition root, the command line, and the hook for other hosts."""
