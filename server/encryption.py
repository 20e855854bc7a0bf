"""The keys of the settings, as the store takes them."""

import binascii
from base64 import b64decode

from holdfast.checkpoints.vault import Encryption, Keyring
from holdfast.contracts.errors import ConfigurationError
from holdfast.runtime.entropy import unguessable
from holdfast.server.settings import EncryptionSettings


def encryption(terms: EncryptionSettings) -> Encryption | None:
    """What is stored is encrypted with; None: nothing. Raises `ConfigurationError`, which quotes no key."""
    if not terms.keys:
        if terms.key_id is not None:
            raise ConfigurationError(
                f"setting encryption.key_id names {terms.key_id!r}, and there are no keys; set "
                "HOLDFAST_ENCRYPTION__KEYS, or leave the key_id out"
            )
        return None
    if terms.key_id is None and len(terms.keys) > 1:
        raise ConfigurationError(
            f"there are several encryption keys; say which one to write with (HOLDFAST_ENCRYPTION__KEY_ID): "
            f"{', '.join(terms.keys)}"
        )
    keys = {key_id: _decoded(key_id, key.get_secret_value()) for key_id, key in terms.keys.items()}
    return Encryption(Keyring(keys, seals_with=terms.key_id or next(iter(keys))), unguessable)


def _decoded(key_id: str, text: str) -> bytes:
    try:
        return b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(
            f"the encryption key {key_id!r} is not base64; make one with `openssl rand -base64 32`"
        ) from None
