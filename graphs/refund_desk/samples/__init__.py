"""Three e-mails that lead to three ends: `small` is refunded at once, `large` is asked about, `denied` is denied."""

from importlib.resources import files

from holdfast.contracts.errors import NotFound

NAMES = ("small", "large", "denied")


def sample(name: str) -> str:
    """The e-mail of that name; raises `NotFound` for any other than `NAMES`."""
    if name not in NAMES:
        raise NotFound(f"there is no sample e-mail {name!r}; there are {', '.join(NAMES)}")
    return (files(__package__) / f"{name}.txt").read_text(encoding="utf-8")
