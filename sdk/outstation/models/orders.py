"""What someone at the box wants of its models: small files that the reconciler takes, at once or at its next start.

So the command line needs no connection to the agent, and an order given while no agent runs is not lost.
"""

from __future__ import annotations

import logging
import time
from enum import Enum
from pathlib import Path

import msgspec

from outstation.durable import make_directories, write_atomically
from outstation.models.versions import checked_version
from outstation.shapes import learn
from outstation.types import MODEL_NAME, checked_name

ORDERS = "orders"

logger = logging.getLogger(__name__)


class OrderKind(str, Enum):
    """What is to be done."""

    PIN = "pin"  # hold the model at this version; "" lets go
    COLLECT = "collect"  # delete what no version needs; of no model
    RETRY = "retry"  # try it again although it was turned down


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One order."""

    kind: OrderKind
    name: str = ""
    version: str = ""


def give_order(store: Path, order: Order) -> None:
    """Leave *order* in the model store *store*, durably. InvalidNameError, StorageError."""
    if order.kind is not OrderKind.COLLECT:
        checked_name(MODEL_NAME, order.name, "model")
    if order.version or order.kind is OrderKind.RETRY:
        checked_version(order.version)
    make_directories(store / ORDERS)
    write_atomically(store / ORDERS / f"{time.time_ns():020d}.json", msgspec.json.encode(order))


def waiting_orders(store: Path) -> tuple[Path, ...]:
    """The files of orders that were not taken yet, oldest first."""
    try:
        return tuple(sorted(path for path in (store / ORDERS).iterdir() if path.suffix == ".json"))
    except OSError:
        return ()


def read_order(path: Path) -> Order | None:
    """The order in *path*; None, with a word in the log, if it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Order)
    except (OSError, msgspec.MsgspecError) as exc:
        logger.warning("Models: %s is no order: %s", path, exc)
        return None


learn(Order)
