"""The configured directory of principals: who may act, for which tenants, in which roles."""

from collections.abc import Mapping

from holdfast.contracts.errors import NotFound
from holdfast.contracts.tenancy import Principal


class Directory:
    """Looks up principals by name. On the embedded database, which only its owner can reach, a bare name is one."""

    def __init__(self, principals: Mapping[str, Principal], *, bare_names: bool) -> None:
        self._principals = dict(principals)
        self._bare_names = bare_names

    def principal(self, who: str | Principal) -> Principal:
        """The principal of that name; `NotFound` when the directory has none and bare names will not do."""
        if isinstance(who, Principal):
            return who
        if who in self._principals:
            return self._principals[who]
        if self._bare_names and who:
            return Principal(user_id=who, tenants=None, roles=("approver", "admin"))
        known = ", ".join(sorted(self._principals)) or "none"
        raise NotFound(f"no principal is named {who!r} in the configured directory (known: {known})")
