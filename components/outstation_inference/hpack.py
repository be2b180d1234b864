"""Header compression for HTTP/2 (RFC 7541), the receiving side. What we send is never compressed: it is constant."""

from __future__ import annotations

from collections import deque

# What both sides agreed on when neither said otherwise (RFC 7540, 6.5.2); we never offer more.
TABLE_BYTES = 4096
# RFC 7541, 4.1: what an entry counts beyond its text.
_ENTRY_BYTES = 32

Header = tuple[str, str]

_NAMES = (
    "accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
    "content-disposition content-encoding content-language content-length content-location content-range "
    "content-type cookie date etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified link location max-forwards proxy-authenticate proxy-authorization "
    "range referer refresh retry-after server set-cookie strict-transport-security transfer-encoding "
    "user-agent vary via www-authenticate"
)
# RFC 7541, appendix A.
_STATIC: tuple[Header, ...] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    *((":status", code) for code in ("200", "204", "206", "304", "400", "404", "500")),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    *((name, "") for name in _NAMES.split()),
)

# RFC 7541, appendix B: the length of each symbol's code, "A" = 5 bits. The codes follow from the lengths, because
# the code is canonical: among equal lengths they count up with the symbol.
_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDC"
    "DIOIJBKABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQ"
    "SRSSPRRRSRRSVVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_END = 256


def _codes() -> dict[tuple[int, int], int]:
    table: dict[tuple[int, int], int] = {}
    code = length = 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        bits = ord(_LENGTHS[symbol]) - ord("A") + 5
        code <<= bits - length
        length = bits
        table[bits, code] = symbol
        code += 1
    return table


_SYMBOLS = _codes()
_LONGEST = max(bits for bits, _ in _SYMBOLS)


class HpackError(Exception):
    """The block cannot be decoded; the connection is lost, because the tables differ from now on."""


class Decoder:
    """One connection's headers, in the order in which their blocks arrive. Not thread-safe."""

    def __init__(self, max_list_bytes: int) -> None:
        """*max_list_bytes* bounds the decoded headers of one block."""
        self._max_list_bytes = max_list_bytes
        self._table: deque[Header] = deque()
        self._size = 0
        self._limit = TABLE_BYTES
        # A client repeats itself: a block that left the table unchanged means the same until the table changes.
        self._known: dict[bytes, tuple[Header, ...]] = {}

    def decode(self, block: bytes) -> tuple[Header, ...]:
        """The headers of *block*. HpackError when it is malformed or too large."""
        known = self._known.get(block)
        if known is not None:
            return known
        headers: list[Header] = []
        size, at, changed = 0, 0, False
        try:
            while at < len(block):
                octet = block[at]
                if octet & 0x80:
                    index, at = _integer(block, at, 7)
                    header = self._indexed(index)
                elif octet & 0x40:
                    header, at = self._literal(block, at, 6)
                    self._add(header)
                    changed = True
                elif octet & 0x20:
                    limit, at = _integer(block, at, 5)
                    self._resize(limit)
                    changed = True
                    continue
                else:
                    header, at = self._literal(block, at, 4)
                headers.append(header)
                size += len(header[0]) + len(header[1]) + _ENTRY_BYTES
                if size > self._max_list_bytes:
                    raise HpackError(f"the headers are larger than {self._max_list_bytes} bytes")
        except IndexError as exc:
            raise HpackError("the block ends inside a header") from exc
        decoded = tuple(headers)
        if changed:
            self._known.clear()
        elif len(self._known) < 16:  # one client sends a handful of different blocks
            self._known[block] = decoded
        return decoded

    def _literal(self, block: bytes, at: int, prefix: int) -> tuple[Header, int]:
        index, at = _integer(block, at, prefix)
        if index:
            name = self._indexed(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _indexed(self, index: int) -> Header:
        if not 0 < index <= len(_STATIC) + len(self._table):
            raise HpackError(f"there is no entry {index}")
        return _STATIC[index - 1] if index <= len(_STATIC) else self._table[index - len(_STATIC) - 1]

    def _add(self, header: Header) -> None:
        self._table.appendleft(header)
        self._size += len(header[0]) + len(header[1]) + _ENTRY_BYTES
        self._evict()

    def _resize(self, limit: int) -> None:
        if limit > TABLE_BYTES:
            raise HpackError(f"a table of {limit} bytes was not offered")
        self._limit = limit
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_BYTES


def literal(name: str, value: str) -> bytes:
    """One header, uncompressed and outside of any table. Both must be ASCII."""
    return b"\0" + _sized(name.encode("ascii")) + _sized(value.encode("ascii"))


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    octets = bytearray((127,))
    size -= 127
    while size >= 128:
        octets.append(size & 127 | 128)
        size >>= 7
    octets.append(size)
    return bytes(octets) + text


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    mask = (1 << prefix) - 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        octet = block[at]
        at += 1
        value += (octet & 127) << shift
        if octet < 128:
            return value, at
        shift += 7
        if shift > 28:  # larger than any length or index that can be meant
            raise HpackError("an integer is too large")


def _string(block: bytes, at: int) -> tuple[str, int]:
    huffman = block[at] & 0x80
    size, at = _integer(block, at, 7)
    if at + size > len(block):
        raise HpackError("a string ends beyond its block")
    data = block[at : at + size]
    return (_decoded(data) if huffman else data).decode("latin-1"), at + size


def _decoded(data: bytes) -> bytes:
    out = bytearray()
    code = bits = 0
    for octet in data:
        for shift in range(7, -1, -1):
            code = code << 1 | (octet >> shift & 1)
            bits += 1
            symbol = _SYMBOLS.get((bits, code))
            if symbol is not None:
                if symbol == _END:
                    raise HpackError("a string holds the end symbol")
                out.append(symbol)
                code = bits = 0
            elif bits > _LONGEST:
                raise HpackError("a string holds no code")
    if bits > 7 or code != (1 << bits) - 1:
        raise HpackError("a string is badly padded")
    return bytes(out)
