"""A store-and-forward log: records survive any outage, within bounds, and each one is accounted for."""

from outstation.buffer.buffer import Buffer, BufferStat
from outstation.buffer.reading import StoredBlock
from outstation.buffer.receipt import Receipt
from outstation.buffer.stream import Stream

__all__ = ["Buffer", "BufferStat", "Receipt", "StoredBlock", "Stream"]
