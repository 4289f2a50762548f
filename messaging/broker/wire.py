"""Wire: how pika connects to an address, and how header values are read and written.

pika raises on a time after the year 9999 (a publisher that counts milliseconds) and on tables that are nested deeply.
The error would come out of its loop and end the connection; the message would be redelivered, and no consumer would
ever get past it. Of a float pika reads only the whole part, and it sends neither floats nor times before 1970. Other
clients send all of these, and a retried message keeps its headers.
"""

from __future__ import annotations

import calendar
import math
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Self

import pika
from pika import amqp_object, data, frame, spec

from messaging.routing import MAX_SHORT_STRING
from messaging.validation import tls
from messaging.validation.addresses import BrokerAddress

_LONG = struct.Struct(">I")
#: The kind of a header's value that is a text.
_TEXT = ord("S")
#: Levels of nested tables and arrays that are read. What is deeper could be neither stored nor sent again.
DEEPEST = 32


# --- Tables -------------------------------------------------------------------------------------------------------


def read_table(encoded: bytes, offset: int = 0, depth: int = 0) -> tuple[dict[Any, Any], int]:
    """Return the table at `offset`, and the offset behind it."""
    end = offset + 4 + _size(encoded, offset)
    offset += 4
    table: dict[Any, Any] = {}
    while offset < end:
        begin, offset = offset + 1, offset + 1 + encoded[offset]
        name = _text(encoded[begin:offset])
        if encoded[offset] == _TEXT:  # most are
            begin = offset + 5
            offset = begin + _size(encoded, offset + 1)
            table[name] = _text(encoded[begin:offset])
        else:
            table[name], offset = _read_value(encoded, offset, depth)
    return table, offset


def _read_value(encoded: bytes, offset: int, depth: int) -> tuple[Any, int]:
    kind, content = encoded[offset : offset + 1], offset + 1
    if kind in {b"d", b"f"}:
        layout = f">{kind.decode()}"
        (value,) = struct.unpack_from(layout, encoded, content)
        return value if math.isfinite(value) else str(value), content + struct.calcsize(layout)
    if kind == b"T":
        # RabbitMQ and most clients have it signed; pika does not.
        return _time(struct.unpack_from(">q", encoded, content)[0]), content + 8
    if kind in {b"l", b"L"}:
        # pika has a type of its own for them, which writes itself as 5L.
        return struct.unpack_from(">q", encoded, content)[0], content + 8
    if kind in {b"F", b"A"} and depth >= DEEPEST:
        return "nested too deep", content + 4 + _size(encoded, content)
    if kind == b"F":
        return read_table(encoded, content, depth + 1)
    if kind == b"A":
        end = content + 4 + _size(encoded, content)
        content += 4
        values = []
        while content < end:
            value, content = _read_value(encoded, content, depth + 1)
            values.append(value)
        return values, content
    value, end = data.decode_value(encoded, offset)
    return value, end


def _text(encoded: bytes) -> str | bytes:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def _size(encoded: bytes, offset: int) -> int:
    size: int = _LONG.unpack_from(encoded, offset)[0]
    return size


def _time(seconds: int) -> datetime | int:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds


def write_table(table: Mapping[Any, Any]) -> bytes:
    """Return `table` as AMQP has it. Raises ValueError for a float that is no number: RabbitMQ would close the whole
    connection over it."""
    pieces: list[bytes] = []
    for name, value in table.items():
        pieces.append(_write_short(name))
        _write_value(pieces, value)
    return _sized(b"".join(pieces))


def _write_value(pieces: list[bytes], value: Any) -> None:
    if type(value) is str:
        pieces += [b"S", _sized(value.encode())]
    elif not isinstance(value, dict | list | datetime | float):
        data.encode_value(pieces, value)
    elif isinstance(value, dict):
        pieces += [b"F", write_table(value)]
    elif isinstance(value, list):
        items: list[bytes] = []
        for each in value:
            _write_value(items, each)
        pieces += [b"A", _sized(b"".join(items))]
    elif isinstance(value, datetime):
        pieces.append(struct.pack(">cq", b"T", calendar.timegm(value.utctimetuple())))
    elif math.isfinite(value):
        pieces.append(struct.pack(">cd", b"d", value))
    else:
        raise ValueError(f"a header is {value}, which is no number")


def _write_short(text: str | bytes) -> bytes:
    encoded = text if isinstance(text, bytes) else text.encode()
    if len(encoded) > MAX_SHORT_STRING:
        raise pika.exceptions.ShortStringTooLong(encoded)
    return len(encoded).to_bytes() + encoded


def _sized(content: bytes) -> bytes:
    return _LONG.pack(len(content)) + content


# --- pika ---------------------------------------------------------------------------------------------------------


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """AMQP's basic properties, read and written by this module: that runs for each message, and pika takes longer."""

    def decode(self, encoded: bytes, offset: int = 0) -> Self:
        """Read the properties at `offset`."""
        flags = more = int.from_bytes(encoded[offset : offset + 2])
        offset += 2
        while more & 1:  # flags of properties that AMQP 0-9-1 does not have
            more = int.from_bytes(encoded[offset : offset + 2])
            offset += 2
        found = _ABSENT.copy()
        for flag, name, read, _ in _LAYOUT:
            if not flags & flag:
                continue
            if read is None:
                begin, offset = offset + 1, offset + 1 + encoded[offset]
                found[name] = _text(encoded[begin:offset])
            else:
                found[name], offset = read(encoded, offset)
        self.__dict__.update(found)
        return self

    def encode(self) -> list[bytes]:
        """Return the pieces that pika sends."""
        flags = 0
        pieces = []
        values = vars(self)
        for flag, name, _, write in _LAYOUT:
            if (value := values[name]) is not None:
                flags |= flag
                pieces.append(write(value))
        return [flags.to_bytes(2), *pieces]


def _read_octet(encoded: bytes, offset: int) -> tuple[int, int]:
    return encoded[offset], offset + 1


def _write_octet(number: int) -> bytes:
    return number.to_bytes()


def _read_seconds(encoded: bytes, offset: int) -> tuple[int, int]:
    return struct.unpack_from(">Q", encoded, offset)[0], offset + 8


def _write_seconds(seconds: int) -> bytes:
    return seconds.to_bytes(8)


#: How a property is read from bytes at a place, and how it is written. Short strings are read in place.
_Kind = tuple[Callable[[bytes, int], tuple[Any, int]] | None, Callable[[Any], bytes]]
_SHORT: _Kind = None, _write_short
_OCTET: _Kind = _read_octet, _write_octet
_KINDS: dict[str, _Kind] = {
    "content_type": _SHORT,
    "content_encoding": _SHORT,
    "headers": (read_table, write_table),
    "delivery_mode": _OCTET,
    "priority": _OCTET,
    "correlation_id": _SHORT,
    "reply_to": _SHORT,
    "expiration": _SHORT,
    "message_id": _SHORT,
    "timestamp": (_read_seconds, _write_seconds),
    "type": _SHORT,
    "user_id": _SHORT,
    "app_id": _SHORT,
    "cluster_id": _SHORT,
}
#: Each property in AMQP's order, with its flag.
_LAYOUT = [(1 << 15 - place, name, *kind) for place, (name, kind) in enumerate(_KINDS.items())]
_ABSENT: dict[str, Any] = dict.fromkeys(_KINDS)


_FRAME = struct.Struct(">BHL")
_FRAME_END = bytes([spec.FRAME_END])
_BODY_SIZE = struct.Struct(">Q")


class PikaConnection(pika.SelectConnection):  # type: ignore[misc]
    """pika's connection, with all tables but the broker's own read and written by this module.

    pika has no public hook for that: two of its internal methods are overridden.
    """

    def drop(self) -> None:
        """Close the socket. `close` waits for the end of each channel, and one that waits for a queue may never end."""
        if self._transport is not None:
            self._transport.abort()

    def _read_frame(self) -> tuple[int, Any]:
        buffer = self._frame_buffer
        if len(buffer) > spec.FRAME_HEADER_SIZE:
            kind, channel, size = _FRAME.unpack_from(buffer)
            end = spec.FRAME_HEADER_SIZE + size
            if kind == spec.FRAME_HEADER and buffer[end : end + 1] == _FRAME_END:
                (body_size,) = _BODY_SIZE.unpack_from(buffer, spec.FRAME_HEADER_SIZE + 4)
                properties = Properties().decode(buffer[:end], spec.FRAME_HEADER_SIZE + 12)
                return end + 1, frame.Header(channel, body_size, properties)
            if kind == spec.FRAME_BODY and buffer[end : end + 1] == _FRAME_END:
                return end + 1, frame.Body(channel, buffer[spec.FRAME_HEADER_SIZE : end])
        found: tuple[int, Any] = super()._read_frame()
        return found

    def _send_method(self, channel_number: int, method: amqp_object.Method, content: Any = None) -> None:
        arguments = getattr(method, "arguments", None)
        if arguments:
            # In every AMQP method the table of arguments comes last; an empty one has four bytes.
            method.arguments = {}
            encoded = b"".join(method.encode())[:-4] + write_table(arguments)
            method = SimpleNamespace(INDEX=method.INDEX, encode=lambda: [encoded])
        super()._send_method(channel_number, method, content)


def parameters_of(
    address: BrokerAddress, *, ca_file: str = "", cert_file: str = "", key_file: str = ""
) -> pika.ConnectionParameters:
    """Return pika's parameters for one attempt to connect to `address`, with TLS for amqps.

    The files are read anew each time: certificates are exchanged while processes run. Raises ValueError for a file that
    cannot be used.
    """
    parameters = pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password),
        connection_attempts=1,
    )
    if address.tls:
        context = tls.context(ca_file, cert_file, key_file)
        parameters.ssl_options = pika.SSLOptions(context, server_hostname=address.host)
    for name in ("heartbeat", "frame_max", "channel_max"):
        if (value := getattr(address, name)) is not None:
            setattr(parameters, name, value)
    return parameters
