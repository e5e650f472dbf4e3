"""A device of python-tuf: refreshes, downloads, and says what it trusts then.

python_client.py STATE ROOT METADATA_URL TARGETS_URL TARGET...

STATE is a directory that outlives the call. Prints {"timestamp": VERSION, "files": {TARGET: FILE}}. Exit code 1 when the
client refuses, with the reason.
"""

import json
import os
import sys

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient import Updater


def main(state, root, metadata_url, targets_url, *targets):
    downloads = os.path.join(state, "targets")
    os.makedirs(downloads, exist_ok=True)
    with open(root, "rb") as file:
        bootstrap = file.read()
    updater = Updater(
        metadata_dir=os.path.join(state, "metadata"),
        metadata_base_url=metadata_url,
        target_dir=downloads,
        target_base_url=targets_url,
        bootstrap=bootstrap,
    )
    updater.refresh()
    files = {}
    for path in targets:
        info = updater.get_targetinfo(path)
        if info is None:
            sys.exit(f"no role has {path}")
        files[path] = updater.find_cached_target(info) or updater.download_target(info)
    with open(os.path.join(state, "metadata", "timestamp.json"), "rb") as file:
        version = json.load(file)["signed"]["version"]
    print(json.dumps({"timestamp": version, "files": files}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (RepositoryError, DownloadError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
