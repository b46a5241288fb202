"""The daemon's gRPC servers: translation only, no rule of the store lives here.

Importing this room imports grpc: the command line does so when it is asked to serve.
"""

from orlop.service.daemon import Daemon
from orlop.service.pools import ServiceLimits
from orlop.service.process import serve

__all__ = ["Daemon", "ServiceLimits", "serve"]
