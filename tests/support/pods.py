"""What a node does with a pod's manifest, as far as mounts go: its one container, run by runc.

    with running(pod, {"/var/lib/orlop": folder}, [sys.executable, "-m", "orlop", ...], work) as process:

Not Kubernetes: no image (the container sees the machine's own programs), no cgroup limits, no network of its
own.  What counts here is real: runc's mount namespace, and the propagation of each of the pod's mounts.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_END = 60.0  # seconds for a container to end
_PROPAGATION = {"Bidirectional": "rshared", "HostToContainer": "rslave", "None": "rprivate"}
_REPOSITORY = Path(__file__).parents[2]
# include/uapi/linux/capability.h, by number
_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)


def parsed(path: Path) -> list[Any]:
    """The documents of a YAML file, as Debian's python3-yaml reads it."""
    code = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code, path], capture_output=True, text=True, check=True, timeout=60
    )
    found: list[Any] = json.loads(done.stdout)
    return found


@contextmanager
def running(
    pod: Any, places: Mapping[str, Path], command: Sequence[str], work: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the pod's container with ``command``; ``places`` are our folders for its paths on the node.

    The container sees each of its mounts at our folder's path.  Those without one are left out, but for
    empty folders, which are tmpfs.  Its output goes to ``work/log``.
    """
    work.mkdir()
    name = f"orlop-test-{secrets.token_hex(6)}"
    rootfs = work / "rootfs"
    rootfs.mkdir()
    # A mount, as an image's root is: runc makes private what the root lies on, here that of the folders, too.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", name, rootfs], check=True)
    (work / "config.json").write_text(json.dumps(_spec(pod, places, command, name)))
    state = ("runc", "--root", os.fspath(work / "state"))
    with (work / "log").open("ab") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *state, "run", "--bundle", os.fspath(work), name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END)
            finally:
                process.kill()
                process.wait()
                subprocess.run([*state, "delete", "--force", name], stdout=log, stderr=log, check=False)
                subprocess.run(["umount", rootfs], stdout=log, stderr=log, check=True)


def _spec(pod: Any, places: Mapping[str, Path], command: Sequence[str], name: str) -> dict[str, Any]:
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _bind("/sys", "/sys", ["rbind", "rslave"]),
        *(_bind(place, place, ["bind", "ro"]) for place in _programs()),
    ]
    for mount in container["volumeMounts"]:
        path = mount["mountPath"]
        if "emptyDir" in volumes[mount["name"]]:
            mounts.append({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
        elif path in places:
            options = ["rbind", _PROPAGATION[mount.get("mountPropagation", "None")]]
            options += ["ro"] if mount.get("readOnly") else []
            mounts.append(_bind(places[path], places[path], options))
    assert container["securityContext"]["privileged"]
    kinds = ("bounding", "effective", "permitted")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            # It ends with runc, however that ends.
            "args": ["/usr/bin/setpriv", "--pdeathsig", "KILL", *command],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", f"ORLOP_CONFIG={os.devnull}"],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, _held()),
        },
        "root": {"path": "rootfs", "readonly": container["securityContext"].get("readOnlyRootFilesystem")},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "mount"}] + ([] if pod.get("hostPID") else [{"type": "pid"}]),
            "cgroupsPath": f"/{name}",
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
            "rootfsPropagation": "rshared",  # as for any pod with a mount that goes both ways
        },
    }


def _bind(source: str | Path, target: str | Path, options: list[str]) -> dict[str, Any]:
    return {
        "destination": os.fspath(target),
        "source": os.fspath(source),
        "type": "bind",
        "options": options,
    }


def _programs() -> list[str]:
    """Where programs are: the system's, this Python's, and ours."""
    system = [place for place in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc") if Path(place).is_dir()]
    return [*system, *dict.fromkeys((sys.base_prefix, sys.prefix, os.fspath(_REPOSITORY / "src")))]


def _held() -> list[str]:
    """What a privileged container gets: all that we have."""
    status = Path("/proc/self/status").read_text()
    bits = int(status.partition("CapEff:")[2].split()[0], 16)
    return [f"CAP_{name}" for number, name in enumerate(_CAPABILITIES.split()) if bits >> number & 1]
