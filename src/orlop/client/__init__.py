"""The same verbs over gRPC."""
