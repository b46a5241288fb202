"""All checks, in the order in which a reader wants them: configuration, machine, store, network."""

from __future__ import annotations

from collections.abc import Mapping

from orlop.diagnosis.configuration import check_configuration
from orlop.diagnosis.daemons import check_daemon
from orlop.diagnosis.findings import Check, Finding, Subject, run_checks
from orlop.diagnosis.folders import check_root, check_run
from orlop.diagnosis.machine import check_confinement, check_drivers, check_kernel, check_privilege
from orlop.diagnosis.process import check_clock, check_limits
from orlop.diagnosis.programs import check_helpers, check_runtimes
from orlop.diagnosis.registries import check_registries
from orlop.diagnosis.stores import check_store

__all__ = ["HERE", "SECTIONS", "THERE", "diagnose"]

HERE: Mapping[str, Check] = {
    "configuration": check_configuration,
    "privilege": check_privilege,
    "machine.kernel": check_kernel,
    "machine.drivers": check_drivers,
    "security": check_confinement,
    "process.limits": check_limits,
    "process.clock": check_clock,
    "folders.root": check_root,
    "folders.run": check_run,
    "store": check_store,
    "runtimes": check_runtimes,
    "helpers": check_helpers,
    "daemon": check_daemon,
    "registries": check_registries,
}
"""Of a store that is opened here."""

THERE: Mapping[str, Check] = {
    name: HERE[name] for name in ("configuration", "process.clock", "daemon", "registries")
}
"""Of a client of a daemon: the rest is the daemon's own, and to be asked where it runs."""

SECTIONS: Mapping[str, str] = {
    "configuration": "Configuration",
    "privilege": "What you may do",
    "machine": "Kernel and drivers",
    "security": "Confinement",
    "process": "This process",
    "folders": "Folders and disk",
    "store": "Store",
    "runtimes": "Running containers",
    "helpers": "Helpers",
    "daemon": "Daemon",
    "registries": "Registries",
}
"""The first parts of findings' names, and what a reader calls them."""


def diagnose(subject: Subject) -> list[Finding]:
    """Look at everything, and change nothing."""
    return list(run_checks(HERE if subject.host is None else THERE, subject))
