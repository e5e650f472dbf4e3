#!/usr/bin/env python3
"""Writes python-tuf/: repositories signed by the reference implementation, which our verifier must accept.

    pip install tuf==7.0.1 'securesystemslib[crypto]==1.6.0'
    python3 make.py

The output is frozen; the keys are thrown away. Run it again only to change what is covered: ECDSA and RSA-PSS signatures
are random, so every file changes. All metadata expire on 2040-01-01, tests verify at the reference time 2030-01-01.
"""

import datetime
import shutil
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

EXPIRES = datetime.datetime(2040, 1, 1, tzinfo=datetime.timezone.utc)
OUT = Path(__file__).parent / "python-tuf"
# Everything that canonical JSON treats in a way of its own: control characters, quotes, order by code point, big numbers.
ODD = {
    "\uff61": 1,
    "\U00010000": 2,
    "quotes \" \\ /": "tab\t newline\n nul\0 del\x7f é \U0001f600",
    "numbers": [0, -1, 2**63, -(2**64)],
    "nested": {"b": [], "a": {}, "": None, "t": True},
}

NEW_KEY = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsa": lambda: CryptoSigner.generate_rsa(size=2048),
    "rsa-pkcs1v15": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=2048),
}


def write(dir: Path, name: str, metadata: Metadata, signers) -> bytes:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    data = metadata.to_bytes()
    (dir / "metadata" / name).write_bytes(data)
    return data


def announce(version: int, data: bytes, hashes) -> MetaFile:
    return MetaFile.from_data(version, data, hashes) if hashes else MetaFile(version)


def repository(name: str, kinds, roots: int, consistent: bool, hashes, announced) -> None:
    """`kinds` are the kinds of keys of every role: all of them must sign."""
    dir = OUT / name
    (dir / "metadata").mkdir(parents=True)
    keys = {role: [NEW_KEY[kind]() for kind in kinds] for role in ["root", "targets", "snapshot", "timestamp", "a/b c"]}

    root = Metadata(Root(expires=EXPIRES, consistent_snapshot=consistent))
    for role in ["root", "targets", "snapshot", "timestamp"]:
        for signer in keys[role]:
            root.signed.add_key(signer.public_key, role)
        root.signed.roles[role].threshold = len(kinds)
    root.signed.unrecognized_fields["x-odd"] = ODD
    old = []
    for version in range(1, roots + 1):
        if version > 1:
            # A new set of root keys every time; the old ones sign too.
            old = keys["root"]
            keys["root"] = [NEW_KEY[kind]() for kind in kinds]
            for signer in old:
                root.signed.revoke_key(signer.public_key.keyid, "root")
            for signer in keys["root"]:
                root.signed.add_key(signer.public_key, "root")
            root.signed.version = version
        write(dir, f"{version}.root.json", root, old + keys["root"])

    def target(path: str, data: bytes) -> TargetFile:
        file = TargetFile.from_data(path, data, hashes)
        file.unrecognized_fields["custom"] = {"note": "é"}
        parent, _, base = path.rpartition("/")
        names = [f"{digest}.{base}" for digest in file.hashes.values()] if consistent else [base]
        for object in names:
            object = dir / "targets" / parent / object
            object.parent.mkdir(parents=True, exist_ok=True)
            object.write_bytes(data)
        return file

    delegated = Metadata(Targets(expires=EXPIRES))
    delegated.signed.targets["dir/delegated.bin"] = target("dir/delegated.bin", b"delegated by " + name.encode())
    prefix = "1." if consistent else ""
    data = write(dir, prefix + "a%2Fb%20c.json", delegated, keys["a/b c"])
    meta = {"a/b c.json": announce(1, data, announced)}

    targets = Metadata(Targets(expires=EXPIRES))
    targets.signed.targets["top.bin"] = target("top.bin", b"top level of " + name.encode())
    role = DelegatedRole("a/b c", [], len(kinds), False, paths=["dir/*"])
    other = DelegatedRole("never", [], 1, True, path_hash_prefixes=["zz"])
    targets.signed.delegations = Delegations({}, {"never": other, "a/b c": role})
    for signer in keys["a/b c"]:
        targets.signed.add_key(signer.public_key, "a/b c")
        targets.signed.add_key(signer.public_key, "never")
    data = write(dir, prefix + "targets.json", targets, keys["targets"])
    meta["targets.json"] = announce(1, data, announced)
    meta["never.json"] = MetaFile(7)

    data = write(
        dir,
        prefix + "snapshot.json",
        Metadata(Snapshot(expires=EXPIRES, meta=meta)),
        keys["snapshot"],
    )
    timestamp = Metadata(Timestamp(expires=EXPIRES, snapshot_meta=announce(1, data, announced)))
    write(dir, "timestamp.json", timestamp, keys["timestamp"])


shutil.rmtree(OUT, ignore_errors=True)
repository("ed25519", ["ed25519"], 2, True, ["sha256"], None)
# Many signatures: about half of all ECDSA signatures have the form that some libraries refuse (high s).
repository("ecdsa", ["ecdsa"], 12, True, ["sha256", "sha512"], ["sha256"])
repository("rsa", ["rsa"], 2, True, ["sha512"], ["sha512"])
repository("rsa-pkcs1v15", ["rsa-pkcs1v15"], 2, True, ["sha256"], None)
repository("all-must-sign", ["ed25519", "ecdsa", "rsa"], 2, True, ["sha256"], ["sha256", "sha512"])
repository("not-consistent", ["ed25519"], 2, False, ["sha256"], ["sha256"])
