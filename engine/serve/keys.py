"""API keys: who asks."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from ..util.parsing import MIB, Unreadable, read_bounded

ANYBODY = "local"  # who asks where there are no keys
SHORTEST = 16  # characters of a key


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Keys:
    """Digests of keys and whose they are.

    Args:
        owners: by the digest of a key; None where nobody has to show one.
    """

    def __init__(self, owners: Mapping[bytes, str] | None = None):
        self._owners = None if owners is None else dict(owners)

    @classmethod
    def read(cls, file: Path | None) -> "Keys":
        """From a file with a key on each line, or a name, a space and a key; lines that begin with # do not count.

        Raises:
            InputError: no such file, no keys, or one that is too short or there twice.
        """
        if file is None:
            return cls()
        try:
            lines = read_bounded(file, MIB).decode().splitlines()
        except FileNotFoundError:
            raise InputError(f"There is no file of API keys at {file}.") from None
        except (Unreadable, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as a file of API keys ({error}).") from None
        owners: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2 or len(words[-1]) < SHORTEST:
                raise InputError(f"{file}, line {number}: give a key of {SHORTEST} characters or more, or NAME KEY.")
            found = digest(words[-1])
            if found in owners:
                raise InputError(f"{file}, line {number}: this key is there twice.")
            owners[found] = words[0] if len(words) == 2 else f"key-{found.hex()[:12]}"
        if not owners:
            raise InputError(f"{file} holds no API key; write one on a line, of {SHORTEST} characters or more.")
        return cls(owners)

    @property
    def needed(self) -> bool:
        return self._owners is not None

    @property
    def count(self) -> int:
        """How many people there are."""
        return 1 if self._owners is None else len(set(self._owners.values()))

    def owner(self, authorization: str | None) -> str | None:
        """Whose key an Authorization header shows: `Bearer KEY`, or what browsers make of KEY as a password; None for
        nobody's. Every key is compared, each in the same time."""
        if self._owners is None:
            return ANYBODY
        shown, found = digest(shown_key(authorization or "")), None
        for known, owner in self._owners.items():
            if hmac.compare_digest(known, shown):
                found = owner
        return found


def shown_key(authorization: str) -> str:
    """The key in an Authorization header, empty where there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode("utf-8", "surrogateescape").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen at."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
