"""The distribution client: transports, authentication, uploads and downloads.

Source: OCI distribution-spec 1.1, and Docker's token authentication specification.
"""
