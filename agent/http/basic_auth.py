"""HTTP basic authentication against bcrypt hashes.

bcrypt runs in a thread, one check at a time. A check takes the same time for an unknown user as for a known one.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

MAX_WAITING = 16
"""Maximum number of waiting password checks. Further ones are refused, so that guessing passwords costs the host at most one core."""
MAX_CACHED = 100
"""Maximum number of accepted credentials that are cached."""
_BCRYPT_BYTES = 72
"""Maximum length of a password in bytes. bcrypt ignores the bytes after it, so longer passwords are refused."""


class TooManyPendingChecksError(Exception):
    """Too many password checks are waiting."""


class BasicAuthUsers:
    """Users by name, with the bcrypt hashes of their passwords. The constructor computes a hash, so call it in a thread."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {user: text.encode() for user, text in hashes.items()}
        self._dummy_hash = _random_hash(max(int(text.split("$")[2]) for text in hashes.values())) if hashes else b""
        self._key = secrets.token_bytes(32)
        self._authenticated: dict[bytes, None] = {}  # keyed digests, which reveal nothing without the key
        self._check = asyncio.Semaphore()
        self._waiting = 0

    def __bool__(self) -> bool:
        return bool(self._hashes)

    async def authenticate(self, authorization: str) -> bool:
        """Return whether the value of an Authorization header has a known user and its password.

        Raises:
            TooManyPendingChecksError: too many other checks are waiting.
        """
        user, password = _parse(authorization)
        digest = hmac.digest(self._key, len(user).to_bytes(4, "big") + user.encode() + password, hashlib.sha256)
        if digest in self._authenticated:
            return True
        if self._waiting >= MAX_WAITING:
            raise TooManyPendingChecksError
        self._waiting += 1
        try:
            async with self._check:
                expected = self._hashes.get(user, self._dummy_hash)
                matches = await asyncio.to_thread(_matches, password[:_BCRYPT_BYTES], expected)
        finally:
            self._waiting -= 1
        valid = matches and user in self._hashes and len(password) <= _BCRYPT_BYTES
        if valid:
            self._authenticated[digest] = None
            while len(self._authenticated) > MAX_CACHED:
                self._authenticated.pop(next(iter(self._authenticated)))
        return valid


def _parse(authorization: str) -> tuple[str, bytes]:
    """Return the user and the password of a header (RFC 7617); both are empty if it is malformed."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        plain = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        plain = b""
    if scheme.lower() != "basic":
        plain = b""
    user, _, password = plain.partition(b":")
    return user.decode("utf-8", "replace"), password


def _matches(password: bytes, expected: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - loaded only where users are configured

    return bcrypt.checkpw(password, expected)


def _random_hash(cost: int) -> bytes:
    """Return the hash of a random password."""
    import bcrypt  # noqa: PLC0415 - as above

    return bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(cost))
