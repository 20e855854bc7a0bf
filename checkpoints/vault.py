"""The keys under which stored values are sealed, and how a value is sealed to the place where it is stored.

AES-256-GCM-SIV (RFC 8452), a nonce of 96 random bits for each value. Under a nonce that repeats it gives away no more
than that two values are equal, so that no count of values makes a key unsafe in practice; a tenant's values have a key
of their own, derived from the operator's. The place (tenant, table, and every column that says what a row is) is
authenticated and not stored again: a value that is found anywhere else does not open.

Names that queries must compare are stored as pseudonyms, made with a key that stays when the operator's change.
"""

import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from holdfast.contracts.errors import ConfigurationError, KeyMissing, SealBroken

Randomness = Callable[[int], bytes]
"""So many bytes that nobody can guess."""

KEY_BYTES = 32
_NONCE_BYTES = 12
_TENANTS_AT_ONCE = 1024
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VERSION = "holdfast seal 1"
_SHOWN = 4
"""So much of a place is shown: the table, the thread, the namespace, and a checkpoint's id or a blob's version."""


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Keyring:
    """The operator's keys by their ids: one seals, all open. Nothing shows the keys themselves."""

    __slots__ = ("_keys", "seals_with")

    def __init__(self, keys: Mapping[str, bytes], *, seals_with: str) -> None:
        """Raises `ConfigurationError` for keys of another length than 32 bytes and ids that name none."""
        for key_id, key in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise ConfigurationError(
                    f"{key_id!r} cannot be the id of a key: use up to 64 letters, digits, dots, dashes and underscores"
                )
            if len(key) != KEY_BYTES:
                raise ConfigurationError(
                    f"the encryption key {key_id!r} has {len(key)} bytes and must have {KEY_BYTES}; "
                    "make one with `openssl rand -base64 32`"
                )
        if seals_with not in keys:
            raise ConfigurationError(
                f"there is no encryption key {seals_with!r} to write with; the keys are {', '.join(keys) or 'none'}"
            )
        self._keys = dict(keys)
        self.seals_with = seals_with

    def __repr__(self) -> str:
        return f"Keyring({', '.join(sorted(self._keys))}; seals with {self.seals_with})"

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    @property
    def key_ids(self) -> Sequence[str]:
        return sorted(self._keys)

    def derived(self, key_id: str, purpose: str) -> bytes:
        """A key of its own for each purpose. Raises `KeyMissing` for an id that is not on the ring."""
        key = self._keys.get(key_id)
        if key is None:
            raise KeyMissing(
                f"what is stored is sealed with the key {key_id!r}, and this process has "
                f"{', '.join(map(repr, self._keys))}; add it to HOLDFAST_ENCRYPTION__KEYS",
                key_id=key_id,
            )
        return hmac.digest(key, joined(_VERSION, purpose), "sha256")


@dataclass(frozen=True, slots=True)
class Encryption:
    """What a database is encrypted with."""

    keyring: Keyring
    randomness: Randomness


class Vault:
    """Seals and opens values, and gives names their pseudonyms. `unlocking.unlocked` makes it."""

    def __init__(self, keyring: Keyring, names_key: bytes, randomness: Randomness) -> None:
        self._keyring = keyring
        self.names_key = names_key
        """Under which names become pseudonyms. The database keeps it, sealed."""
        self._randomness = randomness
        self._cipher = lru_cache(maxsize=_TENANTS_AT_ONCE)(self._derived_cipher)

    def __repr__(self) -> str:
        return f"Vault({self._keyring!r})"

    @property
    def seals_with(self) -> str:
        """The id of the key that new values are sealed with."""
        return self._keyring.seals_with

    def seal(self, tenant_id: str, place: Sequence[str], value: bytes) -> bytes:
        """`value`, for this place alone, under the key in force."""
        key_id = self._keyring.seals_with
        nonce = self._randomness(_NONCE_BYTES)
        return nonce + self._cipher(key_id, tenant_id).encrypt(nonce, value, joined(key_id, tenant_id, *place))

    def open(self, tenant_id: str, place: Sequence[str], sealed: bytes, *, key_id: str) -> bytes:
        """The value that was sealed for this place.

        Raises `KeyMissing` when the key is not here, and `SealBroken` for what was altered, comes from another place
        or was sealed with another key of this id.
        """
        from cryptography.exceptions import InvalidTag  # sealing has seen that it is there

        cipher = self._cipher(key_id, tenant_id)
        try:
            nonce, value = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return cipher.decrypt(nonce, value, joined(key_id, tenant_id, *place))
        except (InvalidTag, ValueError):  # the latter for less than a nonce and a tag
            raise SealBroken(
                f"{described(place)} does not open with the key {key_id!r}: it was altered or stood elsewhere, or "
                "another key has this id here; nothing was changed",
                key_id=key_id,
                place=list(place[:_SHOWN]),
            ) from None

    def pseudonym(self, tenant_id: str, *words: str) -> str:
        """The same for the same words of a tenant, and no word of it. 128 bits."""
        return hmac.digest(self.names_key, joined(_VERSION, tenant_id, *words), "sha256")[:16].hex()

    def _derived_cipher(self, key_id: str, tenant_id: str) -> _Cipher:
        return cipher(self._keyring.derived(key_id, f"values of {tenant_id}"))


def joined(*parts: str) -> bytes:
    """The parts so that no other parts give the same."""
    encoded = [part.encode(errors="surrogatepass") for part in parts]
    return b"".join(piece for part in encoded for piece in (len(part).to_bytes(4), part))


def described(place: Sequence[str]) -> str:
    """A place in words: its table, and what says which row it is."""
    return f"a row of {place[0]} ({' / '.join(place[1:_SHOWN])})"


def cipher(key: bytes) -> _Cipher:
    """The cipher under a key. Raises `ConfigurationError` where there is none to be had."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
    except ImportError:
        raise ConfigurationError("encryption needs a package: pip install 'holdfast[encryption]'") from None
    try:
        return AESGCMSIV(key)
    except UnsupportedAlgorithm:
        raise ConfigurationError(
            "the package cryptography was built with an OpenSSL older than 3.2, which has no AES-GCM-SIV; "
            "install one of its own wheels: pip install --force-reinstall --only-binary :all: cryptography"
        ) from None
