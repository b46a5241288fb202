"""What is well here and what is not, and what to do about it: the checks of `orlop doctor`.

- `findings`: what a check finds, what it looks at, how checks are run;
- `configuration`: files, variables, and what they name;
- `machine`: kernel, drivers, what we may do, what confines us; `probing` tries drivers in a process apart;
- `folders`: the disk that a store lies on; `stores`: the store itself;
- `programs`: what helps us, and what runs containers;
- `registries`: whether they can be reached; `daemons`: likewise a daemon;
- `process`: limits of this process, its cgroup, the clock;
- `checks`: all of them, in order.

Nothing here changes anything, but for a probe's files, which it takes away.  Checks are apart from the
command line: they give values.  Environment and user come in with the `Subject`.
"""
