"""TLS contexts from files: what cannot be used is named, and a file that changes makes another context."""

from __future__ import annotations

import os
import ssl

import pytest

from orlop.errors import FailedPrecondition, PermissionDenied
from orlop.registry.net.certificates import Contexts


def get(contexts, *, verify=True, ca=(), client=()):
    return contexts.get(
        verify=verify,
        ca=[str(one) for one in ca],
        client=[(str(one), "") for one in client],
        attempted="test",
    )


@pytest.fixture
def authority(tmp_path):
    """A file with one of the system's authorities, or the test is skipped where there are none."""
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    if not found:
        pytest.skip("needs the system's authorities: what is missed is that files add to them")
    path = tmp_path / "ca.pem"
    path.write_text(ssl.DER_cert_to_PEM_cert(found[0]))
    return path


def test_a_context_is_made_once_and_anew_where_its_file_changes(authority):
    contexts = Contexts()
    key, context = get(contexts, ca=[authority])
    assert get(contexts, ca=[authority]) == (key, context)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) >= len(ssl.create_default_context().get_ca_certs())
    authority.write_text(authority.read_text() + "\n# edited")
    other, again = get(contexts, ca=[authority])
    assert other != key
    assert again is not context
    assert get(contexts)[0] != key


def test_where_nothing_is_verified_no_authority_is_read(tmp_path):
    _, context = get(Contexts(), verify=False, ca=[tmp_path / "missing"])
    assert context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize("kind", ["ca", "client"])
def test_a_file_that_cannot_be_used_is_named(tmp_path, kind):
    path = tmp_path / "some.pem"
    with pytest.raises(FailedPrecondition, match=r"some\.pem"):
        get(Contexts(), **{kind: [path]})
    for content in ("", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(content)
        with pytest.raises(FailedPrecondition, match=r"some\.pem"):
            get(Contexts(), **{kind: [path]})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        get(Contexts(), **{kind: [path]})


def test_an_authority_that_others_could_have_written_is_refused(authority):
    authority.chmod(0o646)
    with pytest.raises(PermissionDenied):
        get(Contexts(), ca=[authority])
