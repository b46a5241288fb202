"""Make the seeds of the corpus: small real inputs of every form, ``fuzz/corpus/TARGET/seed-…``.

    .venv/bin/python fuzz/seeds.py

The same each time, so that running it again changes nothing.  What the fuzzer itself learns is kept beside
them by ``fuzz/run.py --keep``.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src")]

from orlop.layers.packing.recipes import RECIPES  # noqa: E402 - after the path is set
from orlop.layers.packing.streams import compress  # noqa: E402
from orlop.testing import applied  # noqa: E402
from orlop.testing.layers import Layer, write_layout  # noqa: E402

Seed = tuple[str, str, bytes]

REFERENCES = [
    "alpine", "docker.io/library/alpine:3.20", "127.0.0.1:5000/a/b", "[::1]:5000/a", "a__b/c-d.e:T_1",
    "r.example/a@sha256:" + 64 * "0", "sha256:" + 64 * "a", "sha512:" + 128 * "b", "linux/arm64/v8", "arm",
]  # fmt: skip
CHALLENGES = [
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull"',
    'Basic realm="x", Bearer realm="https://b/t?x=1" , service = "c"',
    "Negotiate YWJj==, Bearer realm=https://a.example/token,service=b",
    r'Bearer realm="https://a.example/\"quoted\""',
]
HEADERS = [
    "r120", "rThu, 01 Jan 2026 12:00:30 GMT", "cbytes 5-9/10", "cbytes */77", "l/v2/b?_state=a%2Fb",
    "lhttps://user:pw@cdn.example/b#part", "l//cdn.example/b", "lhttp://r.example/x", "uhttps://u:p@h/x?sig=1",
]  # fmt: skip
ANSWERS = [
    '{"token":"abc","expires_in":300}',
    '{"access_token":"abc","refresh_token":"x","expires_in":"60"}',
    '{"errors":[{"code":"DENIED","message":"no","detail":{}}]}',
    '{"auths":{"r.example:5000":{"auth":"dTpw"},"https://index.docker.io/v1/":{"identitytoken":"t"}}}',
    '{"credsStore":"desktop","credHelpers":{"docker.io":"secretservice"},"auths":{}}',
    '{"auths":{"r.example:5000":{"auth":"\u00e9"}}}',
    '{"token":"x","expires_in":"nan"}',
]

ACCOUNTS = [
    "www\0root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/sh\n\0www:x:33:\nmail:x:8:www,root\n",
    "1000:mail\0#comment\nu:x:1000:4294967294::/home/u\n\0mail:x:8:",
    "\0\0",
    "4294967295\0u:x:²:0\n\0",
]
SETTINGS = [
    'driver = "erofs"\n[limits]\nlayer_entries = 5\n',
    'insecure_registries = ["a", "b:1"]\ntimeout = 2.5\ndurable = false\n',
    "[limits]\ndepth = 99999999999999999999\n",
    "a = " + 900 * "[",
]
HOSTFILES = [
    (
        'server = "https://registry-1.docker.io"\n[host."https://m.example/a"]\ncapabilities = ["pull"]\nca = "c.pem"\n'
        'override_path = true\ndial_timeout = "1m2.5s"\nclient = [["a.cert", "a.key"]]\n'
    ),
    '[host."http://[::1]:5000"]\nskip_verify = true\n[host."http://[::1]:5000".header]\nx-a = ["b", "c"]\n',
    (
        'unqualified-search-registries = ["docker.io"]\n[[registry]]\nprefix = "r.example/a"\nlocation = "s.example/b"\n'
        '[[registry.mirror]]\nlocation = "m.example"\npull-from-mirror = "digest-only"\n[aliases]\nx = "r.example/x"\n'
    ),
    '[[registry]]\nprefix = "*.r.example"\nblocked = true\n[[registry]]\nlocation = "docker.io"\ninsecure = true\n',
    "[registries.search]\nregistries = ['a.example']\n[registries.block]\nregistries = ['b.example']\n",
]
PROXIES = [
    "http://user:p%40ss@proxy.example:3128\n.r.example\n10.0.0.0/8\n[fd00::1]:5000\n*",
    "proxy.example:8080\nr.example:5000\n*.x\nfd00::/8",
    "socks5://user:pw@p\n",
]

V1IMAGES = [
    (
        '{"localhost/a":{"1":"1","2":"0"}}\0{"id":"0","created":"2015-01-01T00:00:00Z","container_config":'
        '{"Cmd":["sh"]}}\0{"id":"1","parent":"0","author":"a","comment":"c","os":"linux","architecture":"arm"}'
    ),
    '{"a":{"b":"2"}}\0{"parent":"2"}\0{"parent":"0"}\0{"parent":"1","Size":1e400}',
    '{"a":{"b":"../0"}}\0{"config":{"Cmd":null},"rootfs":7,"variant":"v8"}',
]


def seeds() -> Iterator[Seed]:
    """All of them: target, name, bytes."""
    house = _house()
    for name, tar in house.items():
        yield "tar", name, tar
    for name, data in _compressed(house["plain"]):
        yield "compressed", name, data
    for name in ("plain", "sparse"):
        yield "index", name, applied.index_of(house[name]).encode()
        yield "erofs", name, applied.merged([house[name]]).image
    yield "layers", "each", bytes(byte for kind in range(10) for byte in (kind, kind, 3 * kind, 200, kind))
    yield (
        "layers",
        "two",
        bytes((1, 8, 3, 9, 1, 4, 1, 8, 9, 1, 255, 0, 0, 0, 0, 6, 8, 0, 0, 0, 7, 0, 0, 0, 0)),
    )
    for form in ("00", "path", "sparse"):
        yield "pax", form, _pax(form)
    yield from _documents()
    for target, texts in (
        ("names", REFERENCES),
        ("challenge", CHALLENGES),
        ("headers", HEADERS),
        ("answers", ANSWERS),
        ("accounts", ACCOUNTS),
        ("settings", SETTINGS),
        ("hostfiles", HOSTFILES),
        ("proxies", PROXIES),
        ("v1images", V1IMAGES),
    ):
        for number, text in enumerate(texts):
            yield target, str(number), text.encode()


def _house() -> dict[str, bytes]:
    plain = Layer().folder("d", uid=2**32 - 2).file("d/a", b"1" * 700, xattrs={"user.a": b"\0\xff"})
    plain.hardlink("h", "d/a").symlink("l", "d").device("c", "char", 1, 3).fifo("p").file("d/.wh.x")
    plain.file("n" * 120, mtime_ns=-1_500_000_000)
    sparse = Layer().sparse("s", 9000, (1024, b"q" * 512), (4096, b"w" * 100)).opaque("d")
    return {
        "plain": plain.tar(),
        "sparse": sparse.tar(),
        "gnu-long": _header(b"././@LongLink", b"L", 121)
        + b"n" * 121
        + bytes(391)
        + _header(b"x", b"0", 0)
        + bytes(1024),
        "gnu-sparse": _old_sparse(),
        "base-256": _header(b"f", b"0", 0, uid=b"\x80" + bytes(3) + b"\xff\xff\xff\xfe") + bytes(1024),
        "contiguous": _header(b"f", b"7", 3) + b"abc".ljust(512, b"\0") + bytes(1024),
    }


def _header(name: bytes, kind: bytes, size: int, *, uid: bytes = b"0000000\0", rest: bytes = b"") -> bytes:
    block = bytearray(
        struct.pack(
            "100s8s8s8s12s12s8s1s100s8s",
            name, b"0000644\0", uid, b"0000000\0", b"%011o\0" % size, b"%011o\0" % 7, b" " * 8, kind, b"",
            b"ustar  \0",
        ).ljust(386, b"\0")
        + rest
    ).ljust(512, b"\0")  # fmt: skip
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _old_sparse() -> bytes:
    runs = b"".join(b"%011o\0%011o\0" % pair for pair in ((512, 512), (2048, 512)))
    rest = runs.ljust(96, b"\0") + b"\0" + b"%011o\0" % 4096
    return _header(b"s", b"S", 1024, rest=rest) + b"x" * 1024 + bytes(1024)


def _compressed(tar: bytes) -> Iterator[tuple[str, bytes]]:
    from backports import zstd

    yield "gzip", gzip.compress(tar, mtime=0)
    yield "gzip-two", gzip.compress(tar[:512], mtime=0) + gzip.compress(tar[512:], mtime=0)
    yield "isal", b"".join(compress([tar], RECIPES["isal-2"]))
    yield "zstd", zstd.compress(tar)
    yield "bzip2", bz2.compress(tar)
    yield "xz", lzma.compress(tar)
    yield "plain", tar[:1024]


def _pax(form: str) -> bytes:
    records = {
        "00": [
            b"GNU.sparse.size=9",
            b"GNU.sparse.numblocks=1",
            b"GNU.sparse.offset=1",
            b"GNU.sparse.numbytes=3",
        ],
        "path": [b"path=a/b", b"mtime=-1.5", b"uid=4294967294", b"SCHILY.xattr.user.a%3D=\0="],
        "sparse": [b"GNU.sparse.map=0,1,5,2", b"LIBARCHIVE.xattr.user.%62=YWI", b"comment="],
    }[form]
    return b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)


def _documents() -> Iterator[Seed]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        layout = write_layout(Path(folder) / "layout", [b"tar"])
        for path in sorted(layout.rglob("*")):
            data = path.read_bytes() if path.is_file() else b""
            if path.name == "index.json":
                yield "document", "index", b"application/vnd.oci.image.index.v1+json\n" + data
            elif data.startswith(b'{"schemaVersion"'):
                yield "document", "manifest", b"\n" + data
            elif b"rootfs" in data:
                yield "document", "config", b"c" + data
    odd = '{"manifests":[{"digest":"sha256:%s","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v\u00b2"}}]}'
    yield "document", "variant", b"\n" + (odd % (64 * "0")).encode()
    listed = b'{"manifests":[{"digest":"sha256:%s","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v6"}}]}'
    yield "document", "list", b"mapplication/vnd.oci.image.index.v1+json\n" + listed % (64 * b"0")
    yield "document", "any", b'j{"a":[1,2.5e3,null,{"b":"\\ud83d\\ude00"}]}'


def main() -> None:
    """Write them."""
    for target, name, data in seeds():
        path = HERE / "corpus" / target / f"seed-{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
