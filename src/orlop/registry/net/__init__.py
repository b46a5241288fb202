"""Requests over the wire: connections, retries, redirects, rate limits; who may be connected to.

Stacked senders, the lowest first: `wire` (one request, one response) over `connections` and `sockets`;
`transport` (retries, redirects), with its rules in `retry`, `ratelimits` and `redirects`.  `addresses`,
`proxies` and `certificates` say who may be connected to and how; `bodies` and `direct` read what comes.
"""
