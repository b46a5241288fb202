"""The daemon's gRPC servers: translation only, no rule of the store lives here."""
