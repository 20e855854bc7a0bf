"""Exit codes of the command line."""

from enum import IntEnum


class Exit(IntEnum):
    """What the exit code of `holdfast` says."""

    OK = 0
    """Done; the run completed."""
    RUN_FAILED = 1
    """The run failed or was cancelled, or a check failed (`doctor`, `events --verify`)."""
    REFUSED = 2
    """What was asked does not fit, or is not allowed."""
    WAITS = 3
    """The run waits for a person."""
    UNAVAILABLE = 4
    """Not configured, the database is out of reach, or not now."""
    BROKEN = 5
    """holdfast itself failed."""
    STOPPED = 130
    """Stopped by Ctrl-C."""
