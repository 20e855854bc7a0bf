"""Decisions: facts in, verdict out. Pure; nothing here does I/O."""
