"""The same verbs over gRPC: `RemoteStore` asks a daemon and satisfies `orlop.images.api.Store`.

Importing this room imports grpc: `orlop.connect` does so when it is called.
"""

from orlop.client.remote import RemoteStore

__all__ = ["RemoteStore"]
