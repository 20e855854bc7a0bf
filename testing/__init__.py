"""Public helpers for tests: scripted models, in-memory ports, fault plans, virtual time, invariants."""
