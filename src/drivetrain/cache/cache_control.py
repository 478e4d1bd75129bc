"""What a client says about its own request: `Cache-Control`, as RFC 9111, section 5.2.1, defines it.

`no-cache`, `no-store` and `max-age` are obeyed. `only-if-cached`, `max-stale`, `min-fresh`, unknown and malformed
parts are ignored: how long an answer may be given again, and when a stale one helps, is the workflow's decision.
"""

from __future__ import annotations

import re

import msgspec

HEADER_BYTES_MAX = 512
"""Of the header, all its lines joined; real ones have a few dozen. A longer one is not read, and nothing is cached:
somewhere in it the client may have forbidden it."""
AGE_S_MAX = 2**31
"""What larger ages are taken as, see RFC 9111, section 1.2.2."""

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"?', re.DOTALL)


class CacheControl(msgspec.Struct, frozen=True, gc=False):
    """What the client allows. Whoever forbids either takes no part in a flight: its answer is its own."""

    read: bool = True
    """Whether an answer may be given again to this request; false after `no-cache`."""
    write: bool = True
    """Whether this request's answer may be kept; false after `no-store`."""
    max_age_s: int | None = None
    """How old an answer may be that is given; None: as old as the workflow allows."""


ANYTHING = CacheControl()
_NOTHING = CacheControl(False, False)


def read_cache_control(header: bytes | None) -> CacheControl:
    """The directives of a request's `Cache-Control` header, several lines joined by commas. No value raises.

    Of several `max-age` the smallest holds, because it satisfies all of them.
    """
    if not header:
        return ANYTHING
    if len(header) > HEADER_BYTES_MAX:
        return _NOTHING
    if b'"' in header:
        header = _QUOTED.sub(_unquoted, header)
    read = write = True
    max_age_s: int | None = None
    for part in header.lower().split(b","):
        name, _, value = part.strip(b" \t").partition(b"=")
        if name == b"no-cache":
            read = False
        elif name == b"no-store":
            write = False
        elif name == b"max-age" and value.isdigit():
            age_s = min(int(value), AGE_S_MAX)
            max_age_s = age_s if max_age_s is None else min(max_age_s, age_s)
    return CacheControl(read, write, max_age_s)


def _unquoted(quoted: re.Match[bytes]) -> bytes:
    """The digits of `"60"`, which recipients ought to accept; a comma within any other text separates nothing."""
    return quoted[1] if quoted[1].isdigit() else b'""'
