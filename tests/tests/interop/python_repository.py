"""A vendor of python-tuf: makes a repository and its next versions.

python_repository.py REPO STEP

create   root (2 of 3 keys: ed25519, RSA-PSS, ECDSA), targets, the product role "router", one release
release  one more release
refresh  a new timestamp, nothing else
rotate   a new root that ends the keys of snapshot and timestamp, and metadata by the new ones

Keys and counters lie in REPO/private. Target files have a path with directories and characters that URLs escape.
"""

import os
import sys
from datetime import datetime, timedelta, timezone

from cryptography.hazmat.primitives.serialization import load_pem_private_key
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
from tuf.api.serialization.json import JSONSerializer

EXPIRES = (datetime.now(timezone.utc) + timedelta(days=30)).replace(microsecond=0)
KEYS = {
    "root-1": CryptoSigner.generate_ed25519,
    "root-2": CryptoSigner.generate_rsa,
    "root-3": CryptoSigner.generate_ecdsa,
    "targets": CryptoSigner.generate_ed25519,
    "online": CryptoSigner.generate_ed25519,
    "online-next": CryptoSigner.generate_ecdsa,
    "router": CryptoSigner.generate_rsa,
}


class Vendor:
    def __init__(self, repo):
        self.repo = repo
        self.private = os.path.join(repo, "private")
        os.makedirs(self.private, exist_ok=True)
        os.makedirs(os.path.join(repo, "metadata"), exist_ok=True)

    def signer(self, name):
        path = os.path.join(self.private, name + ".pem")
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(KEYS[name]().private_bytes)
        with open(path, "rb") as file:
            return CryptoSigner(load_pem_private_key(file.read(), None))

    def load(self, name):
        return Metadata.from_file(os.path.join(self.repo, "metadata", name))

    def newest(self, role):
        names = [name for name in os.listdir(os.path.join(self.repo, "metadata")) if name.endswith(f".{role}.json")]
        return self.load(max(names, key=lambda name: int(name.split(".")[0])))

    def write(self, role, signed, *keys):
        metadata = Metadata(signed)
        for key in keys:
            metadata.sign(self.signer(key), append=True)
        name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        path = os.path.join(self.repo, "metadata", name)
        metadata.to_file(path + ".new", JSONSerializer(compact=False))
        os.replace(path + ".new", path)

    def target(self, targets, path, contents):
        info = TargetFile.from_data(path, contents, ["sha256", "sha512"])
        targets.targets[path] = info
        directory, _, name = path.rpartition("/")
        directory = os.path.join(self.repo, "targets", directory)
        os.makedirs(directory, exist_ok=True)
        for digest in info.hashes.values():
            with open(os.path.join(directory, f"{digest}.{name}"), "wb") as file:
                file.write(contents)

    def create(self):
        root = Root(expires=EXPIRES, consistent_snapshot=True)
        for role, keys in {
            "root": ["root-1", "root-2", "root-3"],
            "targets": ["targets"],
            "snapshot": ["online"],
            "timestamp": ["online"],
        }.items():
            for key in keys:
                root.add_key(self.signer(key).public_key, role)
        root.roles["root"].threshold = 2
        self.write("root", root, "root-2", "root-3")
        router = self.signer("router").public_key
        role = DelegatedRole("router", [router.keyid], 1, False, paths=["router/*", "router/*/*"])
        targets = Targets(expires=EXPIRES)
        targets.delegations = Delegations({router.keyid: router}, {"router": role})
        self.target(targets, "plain.txt", b"of the top-level role\n")
        self.write("targets", targets, "targets")
        product = Targets(expires=EXPIRES)
        self.target(product, "router/1.0.0+first/image (a).bin", bytes(range(256)) * 400)
        self.write("router", product, "router")
        self.announce("online", Snapshot(expires=EXPIRES), Timestamp(expires=EXPIRES))

    def release(self):
        product = self.newest("router").signed
        product.version += 1
        self.target(product, "router/1.1.0/image.bin", b"the second release" * 1000)
        self.write("router", product, "router")
        self.announce("online")

    def refresh(self):
        timestamp = self.load("timestamp.json").signed
        timestamp.version += 1
        self.write("timestamp", timestamp, "online")

    def rotate(self):
        root = self.newest("root").signed
        root.version += 1
        for role in ["snapshot", "timestamp"]:
            root.revoke_key(self.signer("online").public_key.keyid, role)
            root.add_key(self.signer("online-next").public_key, role)
        self.write("root", root, "root-1", "root-3")
        self.announce("online-next")

    def announce(self, key, snapshot=None, timestamp=None):
        """A snapshot of what is there, and a timestamp: the first ones, or the next ones."""
        if snapshot is None:
            snapshot, timestamp = self.newest("snapshot").signed, self.load("timestamp.json").signed
            snapshot.version += 1
            timestamp.version += 1
        for role in ["targets", "router"]:
            version = self.newest(role).signed.version
            with open(os.path.join(self.repo, "metadata", f"{version}.{role}.json"), "rb") as file:
                snapshot.meta[f"{role}.json"] = MetaFile.from_data(version, file.read(), ["sha256"])
        self.write("snapshot", snapshot, key)
        timestamp.snapshot_meta = MetaFile(snapshot.version)
        self.write("timestamp", timestamp, key)


if __name__ == "__main__":
    vendor = Vendor(sys.argv[1])
    {"create": vendor.create, "release": vendor.release, "refresh": vendor.refresh, "rotate": vendor.rotate}[sys.argv[2]]()
