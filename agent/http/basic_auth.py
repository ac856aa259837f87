"""HTTP basic authentication against bcrypt hashes.

A single thread checks the passwords, so an attacker who guesses passwords uses at most one CPU of the host. A check takes as long for an
unknown user as for a known user.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

MAX_WAITING_CHECKS = 16
"""Maximum number of password checks that run or wait. The endpoint refuses a request that needs a further check."""
MAX_CACHED_CREDENTIALS = 100
"""Maximum number of accepted credentials in the cache. The cache holds digests of the credentials."""
_MAX_PASSWORD_BYTES = 72
"""Maximum length of a password in bytes. Longer passwords are refused, because bcrypt ignores further bytes."""


class TooManyPendingChecksError(Exception):
    """Too many password checks run or wait already."""


class BasicAuthUsers:
    """Users by name, with the bcrypt hashes of their passwords. The constructor computes a hash, so call the constructor in a thread."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {user: text.encode() for user, text in hashes.items()}
        self._dummy_hash = _random_hash(max(int(text.split("$")[2]) for text in hashes.values())) if hashes else b""
        self._digest_key = secrets.token_bytes(32)
        # Oldest first. A keyed digest does not reveal the credentials.
        self._accepted_digests: dict[bytes, None] = {}
        self._check_slot = asyncio.Semaphore()
        self._waiting_checks = 0

    def __bool__(self) -> bool:
        return bool(self._hashes)

    async def authenticate(self, authorization: str) -> bool:
        """Return whether the value of an Authorization header contains a known user and the user's password.

        Raises:
            TooManyPendingChecksError: MAX_WAITING_CHECKS other checks run or wait already.
        """
        user, password = _parse_header(authorization)
        digest = hmac.digest(self._digest_key, len(user).to_bytes(4, "big") + user.encode() + password, hashlib.sha256)
        if digest in self._accepted_digests:
            return True
        if self._waiting_checks >= MAX_WAITING_CHECKS:
            raise TooManyPendingChecksError
        self._waiting_checks += 1
        try:
            async with self._check_slot:
                expected = self._hashes.get(user, self._dummy_hash)
                matches = await asyncio.to_thread(_password_matches, password[:_MAX_PASSWORD_BYTES], expected)
        finally:
            self._waiting_checks -= 1
        valid = matches and user in self._hashes and len(password) <= _MAX_PASSWORD_BYTES
        if valid:
            self._accepted_digests[digest] = None
            while len(self._accepted_digests) > MAX_CACHED_CREDENTIALS:
                self._accepted_digests.pop(next(iter(self._accepted_digests)))
        return valid


def _parse_header(authorization: str) -> tuple[str, bytes]:
    """Return the user and the password of an Authorization header (RFC 7617); both are empty without the scheme Basic and valid Base64."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        plain = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        plain = b""
    if scheme.lower() != "basic":
        plain = b""
    user, _, password = plain.partition(b":")
    return user.decode("utf-8", "replace"), password


def _password_matches(password: bytes, expected_hash: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - loaded only where users are configured

    return bcrypt.checkpw(password, expected_hash)


def _random_hash(cost: int) -> bytes:
    """Return the hash of a random password."""
    import bcrypt  # noqa: PLC0415 - as above

    return bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(cost))
