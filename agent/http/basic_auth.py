"""Whether a password is a user's. bcrypt runs in a thread, one at a time, and an answer takes as long for a user that there is not."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

MAX_WAITING = 16
"""How many passwords may wait to be looked at; another is turned away, so that guessing costs the host one core at most."""
MAX_KNOWN = 100
_BCRYPT_BYTES = 72
"""bcrypt looks at no more; a longer password is nobody's."""


class TooManyGuessesError(Exception):
    """There are as many passwords to look at as we look at."""


class BasicAuthUsers:
    """Users by name, with the bcrypt hashes of their passwords. Made in a thread: it hashes once."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {user: text.encode() for user, text in hashes.items()}
        self._nobody = _of_nobody(max(int(text.split("$")[2]) for text in hashes.values())) if hashes else b""
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, None] = {}  # who was let in, as digests that tell nothing without the key
        self._turn = asyncio.Semaphore()
        self._waiting = 0

    def __bool__(self) -> bool:
        return bool(self._hashes)

    async def admit(self, authorization: str) -> bool:
        """Return whether the value of an Authorization header is one of theirs.

        Raises:
            TooManyGuessesError: too many others wait for that answer.
        """
        user, password = _basic(authorization)
        digest = hmac.digest(self._key, len(user).to_bytes(4, "big") + user.encode() + password, hashlib.sha256)
        if digest in self._known:
            return True
        if self._waiting >= MAX_WAITING:
            raise TooManyGuessesError
        self._waiting += 1
        try:
            async with self._turn:
                good = await asyncio.to_thread(_fits, password[:_BCRYPT_BYTES], self._hashes.get(user, self._nobody))
        finally:
            self._waiting -= 1
        good = good and user in self._hashes and len(password) <= _BCRYPT_BYTES
        if good:
            self._known[digest] = None
            while len(self._known) > MAX_KNOWN:
                self._known.pop(next(iter(self._known)))
        return good


def _basic(authorization: str) -> tuple[str, bytes]:
    """Return the user and the password that a header names (RFC 7617); what is malformed names nobody."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        plain = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        plain = b""
    if scheme.lower() != "basic":
        plain = b""
    user, _, password = plain.partition(b":")
    return user.decode("utf-8", "replace"), password


def _fits(password: bytes, known: bytes) -> bool:
    import bcrypt  # noqa: PLC0415 - for those who have users

    return bcrypt.checkpw(password, known)


def _of_nobody(cost: int) -> bytes:
    """Return the hash of a password that nobody knows."""
    import bcrypt  # noqa: PLC0415 - as above

    return bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(cost))
