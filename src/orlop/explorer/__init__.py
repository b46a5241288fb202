"""Looking at an image as a whole: what its layers did, what takes its place, what of it is wasted.

`survey` asks a store, also one behind a daemon, with its public verbs alone, and gives plain values;
`treemap` lays out sizes; `page` makes a report of them, one self-contained page; `tui` shows them in a
terminal.  Nothing here mounts, writes or reads a file.
"""
