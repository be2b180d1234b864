"""The wire contract: what leaves the device, in bytes.

A function in the cloud needs only this: ``decode(data)`` takes the bytes of one block and gives its header and its
records. Generated classes stay behind :mod:`outstation.wire.convert`.
"""

from outstation.wire.block import BlockHeader, decode, encode
from outstation.wire.columns import Columns

__all__ = ["BlockHeader", "Columns", "decode", "encode"]
