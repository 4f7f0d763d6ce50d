"""Fetch the ONNX backend node models into a cache folder: python tests/fetch_node_models.py FOLDER

They ship in the wheel of onnx 1.16.2 only (later wheels leave them out). The wheel is downloaded by pip,
checked against its sha256, unzipped, and never installed. A folder that is complete is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "onnx-1.16.2-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
SHA256 = "ca12e47965e590b63f31681c8c563c75449a04178f27eac1ff64bad314314fb3"
PREFIX = "onnx/backend/test/data/node/"
COUNT = 1282


def fetch(folder: Path) -> None:
    """Fill *folder* with the node models.

    Raises:
        SystemExit: The download is not the expected file.
    """
    if sum(1 for _ in folder.glob(f"{PREFIX}*/model.onnx")) == COUNT:
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            "pip",
            "download",
            "onnx==1.16.2",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.12",
        ]
        platform = ["--platform", "manylinux2014_x86_64", "--dest", scratch]
        subprocess.run([sys.executable, "-m", *command, *platform], check=True, stdout=subprocess.DEVNULL)
        wheel = Path(scratch) / WHEEL
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != SHA256:
            sys.exit(f"{wheel.name}: expected sha256 {SHA256}, got {digest}")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(PREFIX):
                    archive.extract(name, folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
