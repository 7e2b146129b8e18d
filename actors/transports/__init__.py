"""How weights travel from the learner to the engines."""

from actors.transports.object_store import ObjectStoreTransport

TRANSPORTS = {"object_store": ObjectStoreTransport}
"""transport.kind -> class"""

__all__ = ["TRANSPORTS"]
