"""The distribution client.

`client` has its verbs; what they stand on has rooms of its own:

- `net`: requests over the wire, retries and redirects, and who may be connected to;
- `access`: who we are: challenges, tokens, the credentials that users keep;
- `finding`: where a registry is, its mirrors, and which of them answers;
- `blobs`: downloads and uploads of blobs, and how they go on after a cut.

Here are the verbs' other halves: `asking` addresses a request to a repository, `listing`, `referrers` and
`deletes` are what their names say, `messages` and `faults` are the words that all use.

Source: OCI distribution-spec 1.1, and Docker's token authentication specification.
"""
