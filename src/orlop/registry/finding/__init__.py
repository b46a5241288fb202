"""Where a registry is: its hosts, its mirrors, and which of them answers.

`hosts` has the words (origin, endpoint, place, route), `hostfiles` reads hosts.toml, certs.d and
registries.conf, `places` makes routes of them, `locate` finds out which way of a place answers, `fallback`
goes from place to place; `search` is for short names.
"""
