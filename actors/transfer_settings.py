"""Settings of weight transfers: `cluster.weight_transfer`, chosen by `type`."""

from typing import ClassVar, Literal

from quadriga.data.registry import Registry
from quadriga.data.settings import Settings


class TransferSettings(Settings):
    """Base of the settings of every way in which weights go from the trainer into the engines.

    A subclass names the transfer's two sides as `module:Class`: `sender`, a subclass of `Sender`, and `receiver`, one
    of `Receiver` (both in `quadriga.actors.weights.base`). Only the processes that run a side import it.
    """

    sender: ClassVar[str]
    receiver: ClassVar[str]

    type: str
    """Name of the transfer, or your own settings class as `module:Class`."""


class ObjectStore(TransferSettings):
    """Buckets in Ray's object store: between any number of hosts, and workers may join at any sync."""

    sender = "quadriga.actors.weights.object_store:ObjectStoreSender"
    receiver = "quadriga.actors.weights.object_store:ObjectStoreReceiver"

    type: Literal["object_store"] = "object_store"
    """Kind of transfer."""


TRANSFERS: Registry[type[TransferSettings]] = Registry(
    "a weight transfer", TransferSettings, {"object_store": ObjectStore}
)
