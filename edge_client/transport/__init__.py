"""How frames travel; :mod:`edge_client.transport.zmq_transport` is imported by name, so that the seam needs no zmq."""

from edge_client.transport.base import (
    AuthenticationFailed,
    Connected,
    Disconnected,
    LinkEvent,
    Received,
    Transport,
)

__all__ = ["AuthenticationFailed", "Connected", "Disconnected", "LinkEvent", "Received", "Transport"]
