"""Short digests of text, for fingerprints and names of cache entries."""

from __future__ import annotations

import hashlib


def digest(text: str) -> str:
    """Returns 16 hex digits that depend only on `text`, not on the process or the machine."""
    data = text.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, digest_size=8).hexdigest()
