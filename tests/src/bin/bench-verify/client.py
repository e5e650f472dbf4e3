"""DIR METADATA_URL TARGETS_URL TARGET: refreshes with python-tuf and downloads one target."""

import sys
from pathlib import Path

from tuf.ngclient import Updater

directory, metadata_url, targets_url, target = sys.argv[1:]
directory = Path(directory)
updater = Updater(
    str(directory / "metadata"),
    metadata_url,
    str(directory / "targets"),
    targets_url,
    bootstrap=(directory / "root.json").read_bytes(),
)
updater.refresh()
info = updater.get_targetinfo(target)
updater.download_target(info)
