"""The verbs on registries against Debian's docker-registry, with skopeo as the judge; and by the command line."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.cli import main
from orlop.errors import NotFound, Unimplemented
from orlop.remote.verbs import Remote
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root


@pytest.fixture
def remote(registry: Registry) -> Iterator[Remote]:
    with orlop.registries() as opened:
        yield opened


def skopeo(*arguments: str) -> bytes:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw(name: str) -> bytes:
    return skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}")


def image(seed: int, **how: object) -> images.Image:
    data = random.Random(seed).randbytes(50_000)
    return images.make_image([Layer().file("file", data).tar()], **how)  # type: ignore[arg-type]


def test_a_copy_is_what_skopeos_copy_is(registry: Registry, remote: Remote) -> None:
    parts = [image(1, platform="linux/amd64"), image(2, platform="linux/arm64")]
    cases = {
        "index": images.make_index(parts),
        "list": images.make_index(
            [image(3, docker=True), image(4, docker=True, platform="linux/arm64")], docker=True
        ),
        "zstd": image(6, compression="zstd"),
    }
    repository = f"{registry.host}/copies"
    for tag, made in cases.items():
        images.push(registry, "copies/source", tag, made)
        source = f"{repository}/source:{tag}"
        done = remote.copy(source, f"{repository}/ours:{tag}")
        assert done.mounted > 0  # one registry: nothing went through us
        assert done.sent == 0
        skopeo(
            *("copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"docker://{source}", f"docker://{repository}/theirs:{tag}"),
        )
        assert raw(f"{repository}/ours:{tag}") == raw(f"{repository}/theirs:{tag}") == made.document
        for part in made.parts or (made,):
            for digest in part.blobs:
                assert registry.request(f"/v2/copies/ours/blobs/{digest}", method="HEAD")[0] == 200
        assert remote.manifest(source).data == made.document
        said = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{repository}/ours:{tag}"))
        assert said["Digest"] == done.digest == made.digest
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{repository}/ours"))["Tags"]
    assert sorted(remote.tags(f"{repository}/ours")) == sorted(listed) == sorted(cases)


def test_a_copy_to_another_registry_streams(
    registry: Registry, registry_auth: Registry, tmp_path: Path
) -> None:
    made = images.make_image([Layer().file("big", random.Random(1).randbytes(9_000_000)).tar()])
    images.push(registry, "streams", "1", made)
    auth = tmp_path / "auth.json"
    skopeo(
        *("login", "--tls-verify=false", "--authfile", str(auth)),
        *("-u", registry_auth.user, "-p", registry_auth.password, registry_auth.host),
    )
    target = f"{registry_auth.host}/streams:1"
    with orlop.registries(orlop.Settings(auth_files=(str(auth),))) as remote:
        done = remote.copy(f"{registry.host}/streams:1", target, tags=("2",))
        assert (done.sent, done.mounted) == (2, 0)
        assert remote.manifest(target).data == made.document
        assert sorted(remote.tags(f"{registry_auth.host}/streams")) == ["1", "2"]
    layer = json.loads(made.document)["layers"][0]["digest"]
    status, _, data = registry_auth.request(f"/v2/streams/blobs/{layer}")
    assert (status, data) == (200, made.blobs[layer])


@pytest.mark.distribution("delete.disabled", "delete.manifest", "delete.subject", "referrers.fallback")
def test_a_registry_without_referrers_and_without_deleting_of_tags(
    registry: Registry, remote: Remote
) -> None:
    made = image(7)
    images.push(registry, "deletes", "1", made)
    images.push(registry, "deletes", "2", made)
    repository = f"{registry.host}/deletes"
    found = [
        remote.push_artifact(repository, artifact_type=kind, subject=f"{repository}:1")
        for kind in ("a/b", "c/d")
    ]
    assert sorted(one.digest for one in remote.referrers(f"{repository}:1")) == sorted(
        one.digest for one in found
    )
    assert f"sha256-{made.digest[7:]}" in remote.tags(repository)
    remote.delete(found[0].name)
    assert [one.digest for one in remote.referrers(f"{repository}:1")] == [found[1].digest]
    with pytest.raises(Unimplemented, match="does not delete tags"):
        remote.delete(f"{repository}:1")
    assert remote.delete(f"{repository}:1", manifest=True).digest == made.digest
    for tag in "12":
        with pytest.raises(NotFound):
            remote.manifest(f"{repository}:{tag}")


def test_the_verbs_of_the_command_line_need_no_store(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    index = images.make_index([image(8), image(9, platform="linux/arm64")])
    images.push(registry, "shown", "1", index)
    name, arm = f"{registry.host}/shown:1", f"{registry.host}/shown/arm"
    for variable in ("ORLOP_ROOT", "ORLOP_RUN"):
        monkeypatch.setenv(variable, str(tmp_path / "no-store"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0) -> tuple[bytes, str]:
        assert main(arguments) == code, capfdbinary.readouterr()
        out, err = capfdbinary.readouterr()
        return out, err.decode()

    assert run("manifest", "--raw", name)[0] == index.document
    shown = json.loads(run("manifest", "--json", "--platform", "linux/arm64", name)[0])
    assert shown["digest"] == index.parts[1].digest
    assert shown["media_type"] == index.parts[1].media_type
    assert shown["content"] == json.loads(index.parts[1].document)
    config = run("manifest", "--config", "--platform", "linux/arm64", name)[0]
    assert json.loads(config)["architecture"] == "arm64"
    out, err = run("copy", "--platform", "linux/arm64", "--tag", "x", name, f"{arm}:1")
    assert out.decode() == "".join(f"{arm}:{tag}@{index.parts[1].digest}\n" for tag in ("1", "x"))
    assert f"picked from {index.digest}" in err
    assert sorted(run("tags", arm)[0].decode().split()) == ["1", "x"]
    assert json.loads(run("tags", "--json", "--count", "1", arm)[0])[0] in "1x"
    (tmp_path / "note.txt").write_text("signed")
    pushed, _ = run(
        *("artifact", "push", "--type", "a/note", "--annotation", "k=v", "--subject", name),
        *(f"{registry.host}/shown", "note.txt:text/plain"),
    )
    (referrer,) = json.loads(run("referrers", "--json", name)[0])
    assert (referrer["artifact_type"], referrer["annotations"]) == ("a/note", {"k": "v"})
    assert pushed.decode().strip() == f"{registry.host}/shown@{referrer['digest']}"
    assert referrer["digest"] in run("referrers", "--artifact-type", "a/note", name)[0].decode()
    out, _ = run("artifact", "pull", "-o", "got", pushed.decode().strip())
    assert out.decode() == f"{tmp_path}/got/note.txt\n"
    assert (tmp_path / "got/note.txt").read_text() == "signed"
    assert "absent.txt" in run("artifact", "push", f"{registry.host}/shown:2", "absent.txt", code=3)[1]
    assert "nothing to push" in run("artifact", "push", f"{registry.host}/shown:1", code=2)[1]
    assert b"Commands:" in run("artifact")[0]
    assert "not valid UTF-8" in run("tags", "--last", "\udcff", arm, code=2)[1]
    assert "not valid UTF-8" in run("referrers", "--artifact-type", "\udcff", name, code=2)[1]
    assert "leave out --host" in run("--host", "unix:///nowhere", "artifact", "pull", name, code=2)[1]
    assert "--manifest" in run("delete-remote", name, code=10)[1]
    gone = f"{registry.host}/shown@{index.digest}\n".encode()
    assert run("delete-remote", "--manifest", name)[0] == gone
    run("delete-remote", "--manifest", name, code=3)
    assert run("delete-remote", "--force", "--manifest", name) == (b"", "")
    run("manifest", "--raw", "--json", name, code=2)
    assert not (tmp_path / "no-store").exists()
