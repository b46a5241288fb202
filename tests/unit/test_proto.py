"""The messages of the daemon's API: their shape, and that values and errors come through them whole."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

import orlop.proto
from orlop import errors
from orlop.client import (
    wire,
    wirecomparing,
    wirecontents,
    wireevents,
    wireforks,
    wireregistries,
    wiresharing,
    wirestore,
)
from orlop.client.address import SUN_PATH_MAX, Address
from orlop.client.status import DETAIL_KEY, error_of, status_of
from orlop.config import DRIVERS
from orlop.images import api, comparing, contents, events, forks, shares, upkeep
from orlop.observe import Progress
from orlop.proto.containerd.services.content.v1 import content_pb2
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2
from orlop.proto.docker.containerkit.types import image_pb2
from orlop.proto.orlop.v1 import (
    comparing_pb2,
    contents_pb2,
    events_pb2,
    forks_pb2,
    images_pb2,
    registries_pb2,
    sharing_pb2,
    store_pb2,
    transfer_pb2,
    types_pb2,
)
from orlop.proto.runtime.v1 import images_pb2 as cri_pb2
from orlop.remote import api as remote
from orlop.service.pools import DEFAULT_LIMITS, Pools
from orlop.service.table import pools_by_method

HERE = Address("/run/orlop/socket/orlop.sock")
FILES = [image_pb2.DESCRIPTOR] + [
    module.DESCRIPTOR
    for module in (
        comparing_pb2,
        contents_pb2,
        events_pb2,
        forks_pb2,
        images_pb2,
        registries_pb2,
        sharing_pb2,
        store_pb2,
        transfer_pb2,
        types_pb2,
    )
]

FOREIGN = [
    cri_pb2.DESCRIPTOR,
    content_pb2.DESCRIPTOR,
    snapshots_pb2.DESCRIPTOR,
]  # what others defined, and have clients for

# ------------------------------------------------------------------ shape


def test_the_three_calls_have_exactly_the_names_and_numbers_of_2016():
    file = descriptor_pb2.FileDescriptorProto()
    image_pb2.DESCRIPTOR.CopyToProto(file)
    messages = {
        message.name: {f.name: (f.number, f.type, f.label == f.LABEL_REPEATED) for f in message.field}
        for message in file.message_type
    }
    text, sub = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
    )
    assert image_pb2.DESCRIPTOR.package == "docker.containerkit.types"
    assert messages == {
        "Mount": {
            "type": (1, text, False),
            "source": (2, text, False),
            "target": (3, text, False),
            "options": (4, text, True),
        },
        "PrepareRequest": {"path": (3, text, False), "name": (2, text, False)},
        "PrepareResponse": {"layers": (1, sub, True)},
        "CleanupRequest": {"path": (1, text, False)},
        "CleanupResponse": {},
        "CommitRequest": {"path": (1, text, False)},
        "CommitResponse": {"name": (1, text, False)},
    }
    service = image_pb2.DESCRIPTOR.services_by_name["Images"]
    assert [(m.name, m.input_type.name, m.output_type.name) for m in service.methods] == [
        ("Prepare", "PrepareRequest", "PrepareResponse"),
        ("Cleanup", "CleanupRequest", "CleanupResponse"),
        ("Commit", "CommitRequest", "CommitResponse"),
    ]


def test_the_stubs_are_those_of_the_sources():
    sources = Path(__file__).parents[2] / "proto"
    lines = [
        f"{hashlib.sha256((sources / path).read_bytes()).hexdigest()}  {path}\n"
        for path in sorted(p.relative_to(sources).as_posix() for p in sources.rglob("*.proto"))
    ]
    stamp = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert stamp == orlop.proto.SOURCES, "run `make proto`"


def test_the_stubs_ask_for_no_newer_protobuf_than_the_project_does():
    for path in Path(orlop.proto.__file__).parent.rglob("*_pb2.py"):
        assert "# Protobuf Python Version: 5.29.0\n" in path.read_text(), path


def test_generated_modules_import_each_other_within_the_package():
    loose = re.compile(r"^\s*(?:from|import) (?!orlop\.proto)(?:orlop|docker)\b", re.MULTILINE)
    for path in Path(orlop.proto.__file__).parent.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            assert not loose.search(path.read_text()), path


def test_each_call_has_messages_of_its_own():
    used = []
    for file in FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                assert method.input_type.name == f"{method.name}Request"
                assert method.output_type.name == f"{method.name}Response"
                used += [method.input_type.full_name, method.output_type.full_name]
    assert len(used) == len(set(used))


def test_an_enums_zero_is_unspecified():
    enums = [enum for file in FILES for enum in file.enum_types_by_name.values()]
    assert len(enums) == 4
    for enum in enums:
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")


def test_every_method_is_given_a_pool():
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in FILES + FOREIGN
        for service in file.services_by_name.values()
        for method in service.methods
    }
    chosen = pools_by_method(Pools(DEFAULT_LIMITS))
    assert methods == {method for method in chosen if not method.startswith("/grpc.")}


def test_no_stream_runs_in_a_quick_thread_whoever_defined_it():
    pools = Pools(DEFAULT_LIMITS)
    chosen = pools_by_method(pools)
    for file in FOREIGN:
        for service in file.services_by_name.values():
            for method in service.methods:
                quick = chosen[f"/{service.full_name}/{method.name}"] is pools.quick
                assert not (quick and method.server_streaming), method.full_name


def test_the_snapshots_of_containerd_have_their_names_and_numbers():
    file = descriptor_pb2.FileDescriptorProto()
    snapshots_pb2.DESCRIPTOR.CopyToProto(file)
    fields = {
        message.name: " ".join(f"{f.name}={f.number}" for f in message.field) for message in file.message_type
    }
    make, one, mounts = "snapshotter=1 key=2 parent=3 labels=4", "snapshotter=1 key=2", "mounts=1"
    assert snapshots_pb2.DESCRIPTOR.package == "containerd.services.snapshots.v1"
    assert fields == {
        "PrepareSnapshotRequest": make,
        "PrepareSnapshotResponse": mounts,
        "ViewSnapshotRequest": make,
        "ViewSnapshotResponse": mounts,
        "MountsRequest": one,
        "MountsResponse": mounts,
        "RemoveSnapshotRequest": one,
        "CommitSnapshotRequest": "snapshotter=1 name=2 key=3 labels=4",
        "StatSnapshotRequest": one,
        "Info": "name=1 parent=2 kind=3 created_at=4 updated_at=5 labels=6",
        "StatSnapshotResponse": "info=1",
        "UpdateSnapshotRequest": "snapshotter=1 info=2 update_mask=3",
        "UpdateSnapshotResponse": "info=1",
        "ListSnapshotsRequest": "snapshotter=1 filters=2",
        "ListSnapshotsResponse": "info=1",
        "UsageRequest": one,
        "UsageResponse": "size=1 inodes=2",
        "CleanupRequest": "snapshotter=1",
    }
    assert dict(snapshots_pb2.Kind.items()) == {"UNKNOWN": 0, "VIEW": 1, "ACTIVE": 2, "COMMITTED": 3}


def test_the_image_service_of_cri_has_its_names_and_numbers():
    file = descriptor_pb2.FileDescriptorProto()
    cri_pb2.DESCRIPTOR.CopyToProto(file)
    numbers = {message.name: {f.name: f.number for f in message.field} for message in file.message_type}
    assert cri_pb2.DESCRIPTOR.package == "runtime.v1"
    spec = {"image": 1, "annotations": 2, "user_specified_image": 18, "runtime_handler": 19, "image_ref": 20}
    assert numbers["ImageSpec"] == spec
    counted = {  # from 1 on
        "Image": "id repo_tags repo_digests size uid username spec pinned",
        "AuthConfig": "username password auth server_address identity_token registry_token",
        "FilesystemUsage": "timestamp fs_id used_bytes inodes_used",
        "ImageFsInfoResponse": "image_filesystems container_filesystems",
        "PullImageRequest": "image auth sandbox_config",
        "ImageStatusResponse": "image info",
    }
    for message, names in counted.items():
        assert numbers[message] == {name: number for number, name in enumerate(names.split(), 1)}
    [service] = cri_pb2.DESCRIPTOR.services_by_name.values()
    assert [(m.name, m.input_type.name, m.output_type.name) for m in service.methods] == [
        (name, f"{name}Request", f"{name}Response")
        for name in ("ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo")
    ]


def test_the_content_service_of_containerd_has_its_names_and_numbers():
    messages = content_pb2.DESCRIPTOR.message_types_by_name
    assert content_pb2.DESCRIPTOR.package == "containerd.services.content.v1"
    counted = {  # from 1 on
        "Info": "digest size created_at updated_at labels",
        "InfoRequest": "digest",
        "InfoResponse": "info",
        "UpdateRequest": "info update_mask",
        "UpdateResponse": "info",
        "ListContentRequest": "filters",
        "ListContentResponse": "info",
        "DeleteContentRequest": "digest",
        "ReadContentRequest": "digest offset size",
        "ReadContentResponse": "offset data",
        "Status": "started_at updated_at ref offset total expected",
        "StatusRequest": "ref",
        "StatusResponse": "status",
        "ListStatusesRequest": "filters",
        "ListStatusesResponse": "statuses",
        "WriteContentRequest": "action ref total expected offset data labels",
        "WriteContentResponse": "action started_at updated_at offset total digest labels",
        "AbortRequest": "ref",
    }
    assert set(counted) == {name for name in messages if "." not in name}
    for message, names in counted.items():
        assert {field.name: field.number for field in messages[message].fields} == {
            name: number for number, name in enumerate(names.split(), 1)
        }
    assert content_pb2.WriteAction.items() == [("STAT", 0), ("WRITE", 1), ("COMMIT", 2)]
    [service] = content_pb2.DESCRIPTOR.services_by_name.values()
    streams = {m.name: (m.client_streaming, m.server_streaming) for m in service.methods}
    assert streams == {
        **dict.fromkeys(("Info", "Update", "Delete", "Status", "ListStatuses", "Abort"), (False, False)),
        **dict.fromkeys(("List", "Read"), (False, True)),
        "Write": (True, True),
    }


def test_streams_are_what_may_report_progress_and_run_in_no_quick_thread():
    pools = Pools(DEFAULT_LIMITS)
    chosen = pools_by_method(pools)
    for file in FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                fields = set(method.output_type.fields_by_name)
                watched = {"progress", "warning"} <= fields or "position" in fields  # events are the report
                assert watched == method.server_streaming, method.full_name
                if method.server_streaming:
                    assert chosen[f"/{service.full_name}/{method.name}"] is not pools.quick


def test_no_client_alone_takes_all_calls_or_connections():
    limits = DEFAULT_LIMITS
    assert limits.calls >= 2 * limits.client_calls
    assert limits.client_calls >= 3 * limits.waiting + limits.quick
    assert limits.connections >= 2 * limits.client_connections


def test_the_library_and_its_verbs_need_no_grpc():
    code = (
        "import sys, orlop, orlop.facade, orlop.images.api, orlop.testing.fake; print('grpc' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(orlop.proto.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "False\n"


# ------------------------------------------------------------------ values

TEXT = st.text(max_size=20)
SIZE = st.integers(0, 2**63 - 1)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)
QUOTA = st.none() | st.integers(1, 2**63 - 1)
NUMBER = st.integers(-(2**63), 2**63 - 1)  # which ids there can be is the store's business
ID_MAPS = st.lists(st.builds(api.IdMap, inside=NUMBER, outside=NUMBER, size=NUMBER), max_size=3).map(tuple)
EXTRA = st.builds(
    api.ExtraMount,
    type=st.sampled_from(["bind", "tmpfs", "image"]),
    target=TEXT,
    source=TEXT,
    options=st.lists(TEXT, max_size=3).map(tuple),
)
MOUNTS = st.builds(
    api.Mount, type=TEXT, source=TEXT, target=TEXT, options=st.lists(TEXT, max_size=3).map(tuple)
)
IMAGES = st.builds(
    api.ImageInfo,
    name=TEXT,
    id=TEXT,
    digest=st.none() | TEXT,
    platform=TEXT,
    created=TEXT,
    size=SIZE,
    layers=st.integers(0, 2**31 - 1),
    used=TEXT,
    labels=LABELS,
    index=st.none() | TEXT,
    platforms=st.lists(st.builds(api.HeldPlatform, platform=TEXT, id=TEXT, digest=TEXT), max_size=3).map(
        tuple
    ),
)
TIME = st.floats(0, allow_infinity=False, allow_nan=False)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
BLOBS = st.builds(
    api.Blob,
    diff_id=TEXT,
    size=SIZE,
    entries=SIZE,
    blob=st.none() | TEXT,
    blob_size=SIZE,
    media_type=TEXT,
    blob_present=st.booleans(),
)
ROOTS = st.builds(
    api.PreparedInfo,
    path=TEXT,
    image=TEXT,
    image_id=TEXT,
    kind=st.sampled_from(["active", "view"]),
    driver=TEXT,
    mounted=st.booleans(),
    created=TEXT,
    mounts=st.lists(MOUNTS, max_size=3).map(tuple),
    labels=LABELS,
    quota=QUOTA,
    uid_map=ID_MAPS,
    gid_map=ID_MAPS,
    missing=st.booleans(),
)


def some(value, /, **fields):
    return st.lists(st.builds(value, **fields), max_size=3).map(tuple)


VALUES = [
    (MOUNTS, wire.mount_to, wire.mount_from),
    (IMAGES, wire.image_to, wire.image_from),
    (ROOTS, wire.root_to, wire.root_from),
    (
        st.builds(
            api.ImageDetails,
            info=IMAGES,
            names=st.lists(TEXT, max_size=3).map(tuple),
            config=st.binary(max_size=20),
            manifest=st.none() | st.binary(max_size=20),
            layers=st.lists(BLOBS, max_size=3).map(tuple),
        ),
        wire.details_to,
        wire.details_from,
    ),
    (
        st.builds(
            api.PrepareOptions,
            view=st.booleans(),
            mount=st.booleans(),
            self_contained=st.booleans(),
            pull=st.sampled_from([None, "missing", "never", "always"]),
            platform=st.none() | TEXT,
            labels=LABELS,
            driver=st.sampled_from([None, "auto", *DRIVERS]),
            quota=QUOTA,
            extra=st.lists(EXTRA, max_size=3).map(tuple),
            uid_map=ID_MAPS,
            gid_map=ID_MAPS,
        ),
        wire.prepare_options_to,
        lambda message: wire.prepare_options_from(message, "prepare"),
    ),
    (
        st.builds(
            api.CommitOptions,
            author=TEXT,
            message=TEXT,
            changes=st.lists(TEXT, max_size=3).map(tuple),
            created=st.none() | NUMBER,
            newest=st.none() | NUMBER,
            exclude=st.lists(TEXT, max_size=3).map(tuple),
            squash=st.booleans(),
            base=st.none() | TEXT,
            annotations=LABELS,
            freeze=TEXT,
        ),
        wire.commit_options_to,
        wire.commit_options_from,
    ),
    (
        st.builds(
            Progress,
            item=TEXT,
            phase=TEXT,
            done=SIZE,
            total=SIZE,
            rate=st.floats(0, allow_infinity=False),
            note=TEXT,
        ),
        wire.progress_to,
        wire.progress_from,
    ),
    (
        st.builds(api.PushResult, name=TEXT, digest=TEXT, size=SIZE, names=TEXTS),
        wire.pushed_to,
        wire.pushed_from,
    ),
    (
        st.builds(api.FetchedBlobs, name=TEXT, fetched=TEXTS, present=TEXTS, size=SIZE),
        wire.blobs_to,
        wire.blobs_from,
    ),
    (
        st.builds(api.Removed, names=st.lists(TEXT, max_size=3).map(tuple), freed=SIZE),
        wire.removed_to,
        wire.removed_from,
    ),
    (
        st.builds(
            upkeep.Keep,
            age=st.none() | TIME,
            count=st.none() | SIZE,
            size=st.none() | SIZE,
            free=st.none() | SIZE,
            labels=TEXTS,
        ),
        wirestore.keep_to,
        wirestore.keep_from,
    ),
    (
        st.builds(
            upkeep.Collected, items=st.lists(st.tuples(TEXT, SIZE), max_size=3).map(tuple), names=TEXTS
        ),
        wirestore.collected_to,
        wirestore.collected_from,
    ),
    (
        st.builds(
            upkeep.Usage,
            parts=some(upkeep.UsagePart, kind=TEXT, count=SIZE, size=SIZE, reclaimable=SIZE),
            images=some(upkeep.ImageUsage, id=TEXT, names=TEXTS, unique=SIZE, shared=SIZE),
            free=SIZE,
            capacity=SIZE,
        ),
        wirestore.usage_to,
        wirestore.usage_from,
    ),
    (
        st.builds(
            upkeep.Explanation,
            kind=TEXT,
            name=TEXT,
            size=SIZE,
            kept_by=some(upkeep.Reason, kind=TEXT, name=TEXT, note=TEXT),
            parts=some(upkeep.Part, kind=TEXT, name=TEXT, size=SIZE, shared_with=TEXTS),
            frees=SIZE,
        ),
        wirestore.explanation_to,
        wirestore.explanation_from,
    ),
    (
        st.builds(upkeep.Pin, name=TEXT, kind=TEXT, ref=TEXT, created=TIME, expires=st.none() | TIME),
        wirestore.pin_to,
        wirestore.pin_from,
    ),
    (
        st.builds(
            upkeep.Checked,
            findings=some(
                upkeep.Finding,
                kind=st.sampled_from(["damage", "leftover", "warning"]),
                problem=TEXT,
                thing=TEXT,
                detail=TEXT,
                affects=TEXTS,
                action=TEXT,
            ),
            full=st.booleans(),
            images=SIZE,
            layers=SIZE,
            chains=SIZE,
            blobs=SIZE,
            roots=SIZE,
            bytes=SIZE,
        ),
        wirestore.checked_to,
        wirestore.checked_from,
    ),
    (
        st.builds(
            upkeep.BackedUp, path=TEXT, size=SIZE, images=SIZE, layers=SIZE, content=st.booleans(), roots=SIZE
        ),
        wirestore.backed_up_to,
        wirestore.backed_up_from,
    ),
    (
        st.builds(
            api.StoreInfo,
            version=TEXT,
            root=TEXT,
            run=TEXT,
            driver=TEXT,
            format=st.integers(0, 2**31 - 1),
            images=SIZE,
            prepared=SIZE,
            drivers=st.lists(
                st.builds(api.DriverInfo, name=TEXT, available=st.booleans(), reason=TEXT), max_size=3
            ).map(tuple),
            privilege=TEXT,
            features=LABELS,
        ),
        wirestore.info_to,
        wirestore.info_from,
    ),
]
REGISTRY_VALUES = [
    (
        st.builds(
            remote.Document, name=TEXT, media_type=TEXT, digest=TEXT, size=SIZE, data=st.binary(max_size=20)
        ),
        wireregistries.document_to,
        wireregistries.document_from,
    ),
    (
        st.builds(
            remote.Referrer, digest=TEXT, media_type=TEXT, size=SIZE, artifact_type=TEXT, annotations=LABELS
        ),
        wireregistries.referrer_to,
        wireregistries.referrer_from,
    ),
    (
        st.builds(remote.Deleted, name=TEXT, digest=TEXT),
        wireregistries.deleted_to,
        wireregistries.deleted_from,
    ),
    (
        st.builds(
            remote.Copied,
            names=TEXTS,
            digest=TEXT,
            source_digest=TEXT,
            media_type=TEXT,
            manifests=SIZE,
            blobs=SIZE,
            mounted=SIZE,
            sent=SIZE,
            size=SIZE,
            referrers=SIZE,
        ),
        wireregistries.copied_to,
        wireregistries.copied_from,
    ),
]


def find_to(options):
    return wirecontents.options_to("a", b"*", options)


CONTENT_VALUES = [
    (
        st.builds(
            contents.FileInfo,
            path=st.binary(max_size=9),
            mode=st.integers(0, 0o177777),
            uid=st.integers(0, 2**32 - 1),
            gid=st.integers(0, 2**32 - 1),
            size=SIZE,
            mtime=st.integers(-(2**62), 2**62),
            nsec=st.integers(0, 999_999_999),
            links=st.integers(1, 2**32 - 1),
            target=st.binary(max_size=9),
            device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
            xattrs=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=2).map(tuple),
        ),
        wirecontents.file_to,
        wirecontents.file_from,
    ),
    (
        st.builds(
            contents.Found,
            names=TEXTS,
            image_id=TEXT,
            file=st.builds(contents.FileInfo, path=st.binary(max_size=9), mode=st.just(0o100644)),
        ),
        wirecontents.found_to,
        wirecontents.found_from,
    ),
    (
        st.builds(
            contents.FindOptions,
            kinds=st.sampled_from([(), ("file",), ("file", "symlink")]),
            least=st.none() | SIZE,
            most=st.none() | SIZE,
            platform=st.none() | TEXT,
        ),
        find_to,
        wirecontents.options_from,
    ),
]
FORK_VALUES = [
    (
        st.builds(forks.CheckpointInfo, name=TEXT, created=TEXT, image_id=TEXT, size=SIZE),
        wireforks.checkpoint_to,
        wireforks.checkpoint_from,
    ),
    (
        st.builds(forks.ForkOptions, move=st.booleans(), mount=st.booleans(), labels=LABELS),
        wireforks.fork_options_to,
        wireforks.fork_options_from,
    ),
]
EVENT_VALUES = [
    (
        st.builds(
            events.Event,
            cursor=TEXT,
            seq=SIZE,
            time_ns=SIZE,
            kind=TEXT,
            namespace=TEXT,
            subject=TEXT,
            attributes=LABELS,
        ),
        wireevents.event_to,
        wireevents.event_from,
    ),
    (
        st.builds(
            events.EventQuery,
            cursor=TEXT,
            since_ns=st.none() | SIZE,
            oldest=st.booleans(),
            follow=st.booleans(),
            kinds=TEXTS,
        ),
        wireevents.query_to,
        wireevents.query_from,
    ),
]
FILES_OF_THINGS = CONTENT_VALUES[0][0]
PATH = st.binary(max_size=9)
COUNT = st.integers(0, 2**31 - 1)
CHANGE = st.sampled_from(["added", "changed", "deleted"])
LINES = st.builds(
    comparing.HistoryLine,
    layer=COUNT,
    diff_id=TEXT,
    created=TEXT,
    created_by=TEXT,
    author=TEXT,
    comment=TEXT,
    size=SIZE,
    entries=SIZE,
)
STEPS = st.builds(
    comparing.BlameStep,
    what=CHANGE,
    how=st.sampled_from(["entry", "link", "implied", "whiteout", "opaque", "replaced", "written"]),
    line=LINES,
    at=PATH,
    file=st.none() | FILES_OF_THINGS,
    source=PATH,
    source_layer=COUNT,
)
WASTED_LAYERS = st.builds(comparing.LayerWaste, line=LINES, size=SIZE, wasted=SIZE, entries=SIZE, files=SIZE)
WASTED_FILES = st.builds(
    comparing.WastedFile, path=PATH, size=SIZE, layer=COUNT, hidden_by=COUNT, what=CHANGE
)
COMPARING_VALUES = [
    (
        st.builds(
            comparing.Difference,
            path=PATH,
            what=CHANGE,
            fields=TEXTS,
            old=st.none() | FILES_OF_THINGS,
            new=st.none() | FILES_OF_THINGS,
        ),
        wirecomparing.difference_to,
        wirecomparing.difference_from,
    ),
    (LINES, wirecomparing.history_line_to, wirecomparing.history_line_from),
    (STEPS, wirecomparing.step_to, wirecomparing.step_from),
    (
        st.builds(comparing.Blame, path=PATH, steps=st.lists(STEPS, max_size=2).map(tuple)),
        wirecomparing.blame_to,
        wirecomparing.blame_from,
    ),
    (
        st.builds(
            comparing.TreeLine, file=FILES_OF_THINGS, total=SIZE, entries=SIZE, layer=COUNT, depth=COUNT
        ),
        wirecomparing.tree_line_to,
        wirecomparing.tree_line_from,
    ),
    (WASTED_LAYERS, wirecomparing.wasted_layer_to, wirecomparing.wasted_layer_from),
    (WASTED_FILES, wirecomparing.wasted_file_to, wirecomparing.wasted_file_from),
    (
        st.builds(
            comparing.Waste,
            layers=st.lists(WASTED_LAYERS, max_size=2).map(tuple),
            files=st.lists(WASTED_FILES, max_size=2).map(tuple),
        ),
        wirecomparing.waste_to,
        wirecomparing.waste_from,
    ),
]
SHARE_VALUES = [
    (
        st.builds(
            shares.Share,
            folder=TEXT,
            form=st.sampled_from(shares.SHARE_FORMS),
            images=st.lists(TEXT, max_size=2).map(tuple),
            created=TEXT,
            state=st.sampled_from(get_args(shares.ShareState)),
        ),
        wiresharing.share_to,
        wiresharing.share_from,
    ),
]
VALUES += REGISTRY_VALUES + CONTENT_VALUES + COMPARING_VALUES + FORK_VALUES + EVENT_VALUES + SHARE_VALUES
NAMES = [to.__name__.removesuffix("_to") for _, to, _ in VALUES]


@pytest.mark.parametrize(("values", "to", "back"), VALUES, ids=NAMES)
def test_a_value_comes_back_whole(values, to, back):
    @given(values)
    def check(value):
        message = to(value)
        assert back(type(message).FromString(message.SerializeToString())) == value

    check()


def test_every_value_of_the_verbs_is_tried():
    tried = {"Mount", "ImageInfo", "PreparedInfo", "ImageDetails", "Blob", "PrepareOptions", "CommitOptions"}
    tried |= {
        "PushResult",
        "FetchedBlobs",
        "Removed",
        "Collected",
        "StoreInfo",
        "DriverInfo",
        "ExtraMount",
        "IdMap",
    }
    tried |= {"Keep", "Usage", "UsagePart", "ImageUsage", "Explanation", "Reason", "Part", "Pin"}
    tried |= {"HeldPlatform"}
    tried |= {"Checked", "Finding", "BackedUp"}
    values = {**vars(api), **vars(upkeep)}
    assert {name for name, kind in values.items() if dataclasses.is_dataclass(kind)} - {"Call"} == tried


def test_every_value_of_the_verbs_on_registries_is_tried():
    tried = {"Document", "Referrer", "Deleted", "Copied"}
    of_files = {"Artifact", "ArtifactFile", "PulledFile"}  # no daemon does those verbs
    kinds = {name for name, kind in vars(remote).items() if dataclasses.is_dataclass(kind)}
    assert kinds - {"Call"} == tried | of_files
    assert len(REGISTRY_VALUES) == len(tried)


def test_every_value_of_the_verbs_that_compare_is_tried():
    kinds = {name for name, kind in vars(comparing).items() if dataclasses.is_dataclass(kind)}
    assert len(kinds - {"Call", "FileInfo"}) == len(COMPARING_VALUES)


def test_what_a_newer_daemon_says_of_a_change_is_an_error():
    with pytest.raises(errors.Internal, match="unknown change of a path: 9"):
        wirecomparing.difference_from(comparing_pb2.Difference(what=9))
    with pytest.raises(errors.Internal, match="unknown way to change a path: 9"):
        wirecomparing.step_from(comparing_pb2.BlameStep(what=1, how=9))


def test_every_value_of_the_verbs_about_contents_is_tried():
    kinds = {name for name, kind in vars(contents).items() if dataclasses.is_dataclass(kind)} - {"Call"}
    assert kinds == {"FileInfo", "Found", "FindOptions"}


def test_every_value_of_events_is_tried():
    kinds = {name for name, kind in vars(events).items() if dataclasses.is_dataclass(kind)} - {"Call"}
    assert kinds == {"Event", "EventQuery", "Position"}  # the last is one field


def test_every_value_of_the_verbs_about_forks_is_tried():
    kinds = {name for name, kind in vars(forks).items() if dataclasses.is_dataclass(kind)} - {"Call"}
    assert kinds == {"CheckpointInfo", "ForkOptions"}
    assert len(FORK_VALUES) == len(kinds)


def test_a_finding_of_a_kind_unknown_here_is_an_error():
    with pytest.raises(errors.Internal, match="its kind is unknown: 'odd'"):
        wirestore.checked_from(store_pb2.Checked(findings=[store_pb2.Finding(kind="odd")]))


def test_names_that_are_not_unicode_are_shown_escaped():
    root = api.PreparedInfo(
        path="/srv/\udcff", image="a", image_id="b", kind="view", driver="d", mounted=False, created=""
    )
    assert wire.root_to(root).path == "/srv/\\udcff"


def test_an_unknown_pull_policy_is_refused():
    with pytest.raises(errors.InvalidArgument, match="not a pull policy: 9"):
        wire.prepare_options_from(images_pb2.PrepareOptions(pull=9), "prepare /a")


@pytest.mark.parametrize("driver", ["", "btrfs", "EROFS"])
def test_an_unknown_driver_is_refused_with_the_known_ones(driver):
    with pytest.raises(errors.InvalidArgument, match=f"no such driver: {driver!r}") as caught:
        wire.prepare_options_from(images_pb2.PrepareOptions(driver=driver), "prepare /a")
    assert caught.value.hint == "the drivers are auto, erofs, overlay, native"


def test_an_unknown_type_of_mount_is_refused_with_the_known_ones():
    extra = [images_pb2.ExtraMount(type="nfs", target="/a")]
    with pytest.raises(errors.InvalidArgument, match="no such type of mount: 'nfs'") as caught:
        wire.prepare_options_from(images_pb2.PrepareOptions(extra=extra), "prepare /a")
    assert caught.value.hint == "the types are bind, tmpfs, image"


# ------------------------------------------------------------------ errors

CLASSES = [errors.Error, *errors.Error.__subclasses__()]


class Failed(Exception):
    """What gRPC raises, as far as `error_of` looks."""

    def __init__(self, code, message, trailers):
        super().__init__(message)
        self.outcome = code, message, trailers

    def code(self):
        return self.outcome[0]

    def details(self):
        return self.outcome[1]

    def trailing_metadata(self):
        return self.outcome[2]


def fields(error):
    return type(error), str(error), error.attempted, error.reason, error.hint, error.details


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_back_as_itself(cls):
    error = cls("prepare /srv/ä", "not so: 漢字\nand more", hint="try this", details={"a": "b", "c": ""})
    assert fields(error_of(Failed(*status_of(error)), "x", HERE)) == fields(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_without_details_keeps_its_class(cls):
    code, message, _ = status_of(cls("try", "no"))
    assert type(error_of(Failed(code, message, ()), "x", HERE)) is cls


@pytest.mark.parametrize("char", ["x", "漢", "\udcff", "\x01"])
def test_an_errors_trailers_stay_below_8_kib(char):
    long = char * 20_000
    details = {f"{char}{number}": char * 100 for number in range(1_000)}
    code, message, trailers = status_of(errors.NotFound(long, long, hint=long, details=details))
    on_the_wire = sum(1 if 32 <= byte < 127 else 3 for byte in message.encode())
    [(key, value)] = trailers
    assert on_the_wire + len(key) + len(value) * 4 / 3 + 200 < 8192
    back = error_of(Failed(code, message, trailers), "x", HERE)
    assert type(back) is errors.NotFound
    assert back.reason.endswith("…")


def test_details_that_are_not_ours_leave_the_status():
    failed = Failed(status_of(errors.NotFound("a", "b"))[0], "gone", ((DETAIL_KEY, b"\xff\xff"),))
    assert str(error_of(failed, "find it", HERE)) == "find it: gone"


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:///run/a.sock", "/run/a.sock"),
        ("unix:/run/a.sock", "/run/a.sock"),
        ("unix:////run//a.sock", "/run/a.sock"),
        ("unix:a.sock", f"{os.getcwd()}/a.sock"),
        ("unix:///run/a%20b", "/run/a%20b"),
        ("unix:///" + "x" * (SUN_PATH_MAX - 1), "/" + "x" * (SUN_PATH_MAX - 1)),
    ],
)
def test_an_address_is_a_path(text, path):
    assert Address.parse(text, "connect").path == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/run/a",
        "unix:",
        "unix://",
        "unix://run/a",
        "unix:///",
        "unix:///a/",
        "unix:///a,b",
        "unix-abstract:a",
        "tcp://a:1",
        "localhost:80",
        "unix:///a\0b",
        "unix:///" + "x" * SUN_PATH_MAX,
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(errors.InvalidArgument, match=r"^connect: "):
        Address.parse(text, "connect")


def test_a_path_too_long_for_a_socket_says_how_long_it_may_be():
    with pytest.raises(errors.InvalidArgument, match="has 120 bytes, and a unix socket's at most 107"):
        Address.parse("unix:///" + "ä" * 59 + "x", "listen")
