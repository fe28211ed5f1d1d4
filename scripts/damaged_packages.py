# SPDX-License-Identifier: Apache-2.0
"""Prints, as pip requirements, the packages of this venv that an interrupted installation left incomplete.

pip takes a package for installed once its metadata is there; the list of its files (RECORD) comes later.
"""

import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path


def is_damaged(package: Distribution) -> bool:
    """Is the list of files missing, or any file on it?"""
    if package.read_text("METADATA") is None:  # .egg-info, which the ROS wheels bring along; pip did not make it
        return False
    if package.files is None:
        return True
    return any(not Path(str(file.locate())).exists() for file in package.files if file.suffix != ".pyc")


folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
for package in distributions(path=sorted(folders)):
    if is_damaged(package):
        print(f"{package.metadata['Name']}=={package.version}")
