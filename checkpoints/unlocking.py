"""Which keys a database is sealed with, and whether this process has them: found out before anything is read."""

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.checkpoints.line import Connection
from holdfast.checkpoints.queries import load_queries
from holdfast.checkpoints.vault import KEY_BYTES, Encryption, Keyring, Vault
from holdfast.contracts.errors import ConfigurationError, SealBroken

_SQL = load_queries(__name__, "vault.sql")
_NOBODY = ""
"""Whose the key of names is: no tenant has this id."""

KeysInUse = Sequence[Mapping[str, Any]]


async def keys_in_use(conn: Connection) -> KeysInUse:
    """The keys that rows may be sealed with; none: the database is not encrypted."""
    return await (await conn.execute(_SQL["keys_in_use"])).fetchall()


async def unlocked(conn: Connection, encryption: Encryption, *, complete: bool = True) -> Vault:
    """The database's vault, made on its first use; from then on the database counts as encrypted, `complete` or not.
    Raises `ConfigurationError` when a key that is in use is missing or is another."""
    keyring, randomness = encryption.keyring, encryption.randomness
    await conn.execute(_SQL["lock_keys"])
    found = await keys_in_use(conn)
    vault = Vault(keyring, _names_key(found, keyring) if found else randomness(KEY_BYTES), randomness)
    if keyring.seals_with not in {key["key_id"] for key in found}:
        ours = {
            "key_id": keyring.seals_with,
            "names_key": vault.seal(_NOBODY, _place(keyring.seals_with), vault.names_key),
            "complete": complete or bool(found),
        }
        await conn.execute(_SQL["add_key"], ours)
    return vault


def require_off(found: KeysInUse) -> None:
    """For a process without keys: raises `ConfigurationError` when the database is encrypted."""
    if found:
        raise ConfigurationError(
            f"the database is encrypted, with {_listed(found)}, and this process has no keys; "
            "set HOLDFAST_ENCRYPTION__KEYS"
        )


def require_complete(found: KeysInUse, *, in_the_clear: bool) -> None:
    """Raises `ConfigurationError` when what the database holds is in the clear, or only in part encrypted so far."""
    if in_the_clear:
        raise ConfigurationError(
            "encryption is on, and what the database holds is in the clear; stop the workers and run "
            "`holdfast db encrypt`"
        )
    if not all(key["complete"] for key in found):
        raise ConfigurationError(
            "encrypting the database was begun and is not finished; run `holdfast db encrypt` again"
        )


async def complete(conn: Connection, key_id: str) -> Sequence[str]:
    """Note that everything is sealed with this key; returns the ids of those that are needed no more."""
    await conn.execute(_SQL["complete_encryption"])
    retired = await conn.execute(_SQL["retire_keys"], {"key_id": key_id})
    return sorted(row["key_id"] for row in await retired.fetchall())


async def holds_rows(conn: Connection) -> bool:
    """Whether there is anything of the transaction's tenants that would be encrypted."""
    row = await (await conn.execute(_SQL["holds_rows"])).fetchone()
    return bool(row and row["found"])


async def tenants_of(conn: Connection) -> Sequence[str]:
    """Whose rows the database may hold; for the engine."""
    return [row["tenant_id"] for row in await (await conn.execute(_SQL["tenants_of_the_database"])).fetchall()]


def _names_key(found: KeysInUse, keyring: Keyring) -> bytes:
    if missing := [key for key in found if key["key_id"] not in keyring]:
        raise ConfigurationError(
            f"rows are sealed with {_listed(missing)}, and this process has only {', '.join(keyring.key_ids)}; add "
            "what is missing to HOLDFAST_ENCRYPTION__KEYS. A key is needed until `holdfast db encrypt` has sealed "
            "everything with the new one"
        )
    opening = Vault(keyring, b"", lambda _: b"")
    try:
        opened = [opening.open(_NOBODY, _place(key["key_id"]), key["names_key"], key_id=key["key_id"]) for key in found]
    except SealBroken as error:
        raise ConfigurationError(
            f"the encryption key {error.facts['key_id']!r} is not the one that rows are sealed with under this id; "
            "put back the key that it was"
        ) from None
    return opened[0]


def _place(key_id: str) -> tuple[str, ...]:
    return ("encryption_keys", key_id)


def _listed(keys: KeysInUse) -> str:
    return ", ".join(f"the key {key['key_id']!r}" for key in keys)
