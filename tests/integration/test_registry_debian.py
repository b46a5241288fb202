"""The registry client against Debian's docker-registry, with skopeo as the judge."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import shutil
import socket
import ssl
import subprocess
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from orlop.config import Settings
from orlop.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, parse_manifest
from orlop.spec.reference import Reference
from orlop.testing.registry import MemoryRegistry

pytestmark = [
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="needs docker-registry as the server"),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo as the judge"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate"),
]

CALL = Call()
# The user "me" with the password "s3cret", in bcrypt, which is all that docker-registry takes.
HTPASSWD = "me:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(folder, *, http="", auth=""):
    """A docker-registry on loopback; gives its host and port."""
    port = free_port()
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: x{http}}}\n{auth}"
    )
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def open_host(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("open")) as host:
        yield host


@pytest.fixture(scope="module")
def closed_host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("closed")
    (folder / "htpasswd").write_text(HTPASSWD)
    with serve(folder, auth=f"auth: {{htpasswd: {{realm: r, path: {folder}/htpasswd}}}}\n") as host:
        yield host


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        f" -keyout {folder}/key -out {folder}/cert"
        f" -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    return folder


def connect(tmp_path, *, user="", **settings):
    files = ()
    if user:
        host, _, text = user.partition("=")
        path = tmp_path / "auth.json"
        auth = base64.b64encode(text.encode()).decode()
        path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        files = (str(path),)
    return contextlib.closing(Registry(Settings(retries=1, **settings), CredentialSources(files=files)))


def encoded(document):
    return json.dumps(document).encode()


def make_image(text):
    """A small image: (manifest, config, layer), as bytes."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        info = tarfile.TarInfo("hello")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    layer = gzip.compress(tar.getvalue(), mtime=0)
    config = encoded(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest.of(tar.getvalue())]},
        }
    )
    manifest = encoded(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": Digest.of(config), "size": len(config)},
            "layers": [{"mediaType": f"{OCI_LAYER}+gzip", "digest": Digest.of(layer), "size": len(layer)}],
        }
    )
    return manifest, config, layer


def push(client, ref, image):
    manifest, config, layer = image
    client.upload_blob(ref, [config], digest=Digest.of(config), size=len(config), call=CALL)
    hasher = hashlib.sha256()

    def chunks():
        for at in range(0, len(layer), 50):
            hasher.update(layer[at : at + 50])
            yield layer[at : at + 50]

    client.upload_blob(
        ref, chunks(), digest=lambda: Digest(f"sha256:{hasher.hexdigest()}"), size=None, call=CALL
    )
    return client.put_manifest(ref, manifest, OCI_MANIFEST, call=CALL)


def skopeo(*args):
    return subprocess.run(["skopeo", *args], check=True, capture_output=True, text=True).stdout


@pytest.mark.distribution("push.monolithic.post-put", "push.manifest.put", "push.manifest.bytes")
def test_skopeo_reads_what_was_pushed(open_host, tmp_path):
    image = make_image(b"pushed by the client")
    ref = Reference.parse(f"{open_host}/some/image:v1")
    with connect(tmp_path) as client:
        digest = push(client, ref, image)
    skopeo("copy", "--src-tls-verify=false", f"docker://{ref}", f"oci:{tmp_path}/out:v1")
    blobs = tmp_path / "out" / "blobs" / "sha256"
    assert {path.read_bytes() for path in blobs.iterdir()} == set(image)
    said = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{ref}"))
    assert said["Digest"] == digest


@pytest.mark.distribution("pull.manifest.get", "pull.blob.get", "pull.blob.range")
def test_what_skopeo_pushed_is_read(open_host, tmp_path):
    manifest, config, layer = image = make_image(b"pushed by skopeo")
    blobs = tmp_path / "in" / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for data in image:
        (blobs / Digest.of(data).hex).write_bytes(data)
    entry = {"mediaType": OCI_MANIFEST, "digest": Digest.of(manifest), "size": len(manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (tmp_path / "in" / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "in" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    ref = Reference.parse(f"{open_host}/from/skopeo:v2")
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/in:v1", f"docker://{ref}")
    with connect(tmp_path) as client:
        found = client.resolve(ref, call=CALL)
        assert found.data == manifest
        parsed = parse_manifest(found.data, found.descriptor.media_type, "test")
        assert client.blob(ref, parsed.config, call=CALL) == config
        with client.open_blob(ref, Digest.of(layer), call=CALL) as stream:
            assert b"".join(stream) == layer
        with client.open_blob(ref, Digest.of(layer), offset=7, call=CALL) as stream:
            assert (stream.offset, stream.size) == (7, len(layer))
            assert b"".join(stream) == layer[7:]
        with client.open_blob(ref, Digest.of(layer), offset=len(layer), call=CALL) as stream:
            # Its 416 announces as many bytes as the blob has, and sends fewer.
            assert (stream.offset, b"".join(stream)) == (len(layer), b"")


@pytest.mark.distribution("pull.manifest.not-found", "pull.blob.not-found", "head.manifest", "head.blob")
def test_what_is_not_there_is_told(open_host, tmp_path):
    with connect(tmp_path) as client:
        with pytest.raises(NotFound, match="manifest unknown"):
            client.resolve(Reference.parse(f"{open_host}/no/image:v1"), call=CALL)
        ref = Reference.parse(f"{open_host}/no/image:v1")
        assert client.has_manifest(ref, call=CALL) is None
        assert client.has_blob(ref, Digest.of(b"none"), call=CALL) is None
        with pytest.raises(NotFound, match="blob unknown"):
            client.blob(ref, Descriptor(digest=Digest.of(b"none"), size=4), call=CALL)


@pytest.mark.distribution("mount.from")
def test_a_blob_is_mounted_across_repositories(open_host, tmp_path):
    image = make_image(b"mounted")
    digest = Digest.of(image[2])
    with connect(tmp_path) as client:
        push(client, Reference.parse(f"{open_host}/mount/from:v1"), image)
        target = Reference.parse(f"{open_host}/mount/to:v1")
        assert client.has_blob(target, digest, call=CALL) is None
        assert client.mount_blob(target, digest, "mount/from", call=CALL)
        assert client.has_blob(target, digest, call=CALL) == len(image[2])
        assert not client.mount_blob(target, Digest.of(b"nowhere"), "mount/from", call=CALL)


def test_many_threads_share_one_client(open_host, tmp_path):
    images = [make_image(f"image {number}".encode() * 5_000) for number in range(12)]
    refs = [Reference.parse(f"{open_host}/many/image:v{number}") for number in range(12)]
    with connect(tmp_path) as client, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: push(client, *pair), zip(refs, images, strict=True)))
        found = list(pool.map(lambda ref: client.resolve(ref, call=CALL).data, refs))
    assert found == [manifest for manifest, _, _ in images]


def test_basic_authentication_lets_the_right_user_in(closed_host, tmp_path):
    ref = Reference.parse(f"{closed_host}/private/image:v1")
    with connect(tmp_path, user=f"{closed_host}=me:s3cret") as client:
        client.ping(closed_host, call=CALL)
        push(client, ref, make_image(b"private"))
        assert client.has_manifest(ref, call=CALL) is not None
    skopeo("inspect", "--creds=me:s3cret", "--tls-verify=false", f"docker://{ref}")


@pytest.mark.parametrize("user", ["", "=me:wrong", "/other/image=me:s3cret"])
def test_basic_authentication_keeps_everyone_else_out(closed_host, tmp_path, user):
    ref = Reference.parse(f"{closed_host}/private/image:v1")
    with connect(tmp_path, user=user and closed_host + user) as client:
        with pytest.raises((Unauthenticated, PermissionDenied), match="log in") as caught:
            client.resolve(ref, call=CALL)
        with pytest.raises((Unauthenticated, PermissionDenied)):
            client.put_manifest(ref, b"{}", OCI_MANIFEST, call=CALL)
    assert "wrong" not in str(caught.value)


def test_tls_on_loopback_needs_no_certificate_of_a_known_ca(certificate, tmp_path):
    http = f", tls: {{certificate: '{certificate}/cert', key: '{certificate}/key'}}"
    with serve(tmp_path, http=http) as host, connect(tmp_path) as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        ref = Reference.parse(f"{host}/tls/image:v1")
        image = make_image(b"over TLS" * 200_000)
        push(client, ref, image)
        with client.open_blob(ref, Digest.of(image[2]), call=CALL) as stream:
            assert b"".join(stream) == image[2]


def test_elsewhere_an_unknown_ca_is_refused_unless_the_settings_allow_it(certificate, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}/cert", f"{certificate}/key")
    with MemoryRegistry(tls=context) as server:
        # This machine's own name is not loopback by its letters, so the certificate must be valid.
        name = f"{socket.gethostname()}:{server.host.rpartition(':')[2]}"
        if not reachable(name):
            name = f"localhost.:{server.host.rpartition(':')[2]}"
        with connect(tmp_path) as client, pytest.raises(Unavailable, match="certificate") as caught:
            client.ping(name, call=CALL)
        assert "insecure_registries" in caught.value.hint
        with connect(tmp_path, insecure_registries=(name,)) as client:
            client.ping(name, call=CALL)


def reachable(name):
    host, _, port = name.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
