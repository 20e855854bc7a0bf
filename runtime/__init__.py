"""The engine: coordinator, worker, leases, cancellation, shutdown, the real clock and ids."""
