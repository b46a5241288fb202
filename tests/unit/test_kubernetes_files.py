"""The files for Kubernetes: that they say what the documentation and the daemon say.  None is applied here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orlop.cli.environment import SYSTEM_CONFIG
from support.pods import parsed

ROOT = Path(__file__).parents[2]
FILES = ROOT / "packaging" / "kubernetes"
SOCKET = "unix:///run/orlop/socket/orlop.sock"


def documents(name: str) -> list[Any]:
    return parsed(FILES / name)


@pytest.fixture(scope="module")
def pod() -> Any:
    namespace, config, daemonset = documents("daemonset.yaml")
    assert [one["kind"] for one in (namespace, config, daemonset)] == ["Namespace", "ConfigMap", "DaemonSet"]
    name = namespace["metadata"]["name"]
    assert name == config["metadata"]["namespace"] == daemonset["metadata"]["namespace"]
    assert list(config["data"]) == [Path(SYSTEM_CONFIG).name]
    chosen, template = daemonset["spec"]["selector"]["matchLabels"], daemonset["spec"]["template"]
    assert chosen.items() <= template["metadata"]["labels"].items()
    return template["spec"]


def test_what_the_daemon_mounts_appears_on_the_node_at_the_same_path(pod: Any) -> None:
    [container] = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert len(container["volumeMounts"]) == len(mounts)
    for name in ("store", "run", "roots"):
        assert volumes[name]["hostPath"]["path"] == mounts[name]["mountPath"]
        assert volumes[name]["hostPath"]["type"] == "DirectoryOrCreate"
    both_ways = {name for name, mount in mounts.items() if mount.get("mountPropagation") == "Bidirectional"}
    assert both_ways == {"run", "roots"}
    assert container["securityContext"]["privileged"] is True  # or Bidirectional is refused
    assert pod["hostPID"] is True
    assert mounts["config"]["mountPath"] == str(Path(SYSTEM_CONFIG).parent)


def test_the_container_runs_the_daemon_on_the_documented_socket_and_is_asked_there(pod: Any) -> None:
    [container] = pod["containers"]
    root, run, daemon, listen = container["args"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert (root, run) == (f"--root={mounted['store']}", f"--run={mounted['run']}")
    assert (daemon, listen) == ("daemon", f"--listen={SOCKET}")
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == ["orlop", f"--host={SOCKET}", "info"]


def test_a_kubelet_and_crictl_are_sent_to_the_same_socket() -> None:
    [kubelet], [crictl] = documents("kubelet.yaml"), documents("crictl.yaml")
    assert (kubelet["apiVersion"], kubelet["kind"]) == (
        "kubelet.config.k8s.io/v1beta1",
        "KubeletConfiguration",
    )
    assert kubelet["imageServiceEndpoint"] == crictl["image-endpoint"] == SOCKET
    unit = (FILES / "kubelet-orlop.conf").read_text()
    assert re.search(r"^After=orlop\.service$", unit, re.MULTILINE)
    assert re.search(r"^Wants=orlop\.service$", unit, re.MULTILINE)


def test_the_page_names_each_file_and_each_mount(pod: Any) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named = {path.name for path in FILES.iterdir() if path.name in page}
    assert named == {path.name for path in FILES.iterdir()}
    for mount in pod["containers"][0]["volumeMounts"]:
        assert mount["mountPath"] == "/tmp" or f"`{mount['mountPath']}`" in page
    assert SOCKET in page
