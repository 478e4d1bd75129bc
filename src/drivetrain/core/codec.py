"""Encoders and decoders, made once; and what JSON we accept from clients and providers."""

from __future__ import annotations

from typing import Any

import msgspec

MSGPACK = msgspec.msgpack.Encoder()
JSON = msgspec.json.Encoder()
JSON_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class MalformedJson(ValueError):
    """Bytes that are not JSON as RFC 8259 has it: the parser's reason."""


def parse_json(data: bytes) -> Any:
    """JSON as Python values. Strict: no NaN, no lone surrogates, no bad UTF-8, bounded depth.

    Raises: MalformedJson.
    """
    try:
        return JSON_ANY.decode(data)
    except RecursionError as error:
        raise MalformedJson("it is nested too deeply") from error
    except (msgspec.MsgspecError, UnicodeError, ValueError) as error:
        raise MalformedJson(str(error)) from error
