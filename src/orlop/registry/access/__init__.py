"""Who we are: challenges, tokens, and the credentials that users keep.

`auth` is the sender that answers challenges, by the rules of `challenge` and `tokens`; `credentials` and
`authfile` are the files of Docker and containers, `helpers` the programs beside them; `login` tries
credentials and keeps them.
"""
