# SPDX-License-Identifier: Apache-2.0
"""ament_python package: read by `colcon build` on a ROS 2 distribution and by `pip install` anywhere."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
NAME = "vmloc_ros"
SHARE = f"share/{NAME}"

# The only place with the versions of the ROS 2 Jazzy wheels. They provide rclpy and messages on machines without a
# ROS 2 distribution; never install them beside one.
ROS_WHEELS = [
    "ros-jazzy-rclpy[fastrtps]==7.1.6",
    "ros-jazzy-std-msgs==5.3.6",
    "ros-jazzy-sensor-msgs==5.3.6",
    "ros-jazzy-geometry-msgs==5.3.6",
    "ros-jazzy-nav-msgs==5.3.6",
    "ros-jazzy-diagnostic-msgs==5.3.6",
    "ros-jazzy-std-srvs==5.3.6",
    "ros-jazzy-lifecycle-msgs==2.0.3",
]


def version() -> str:
    """The package's version, written once in vmloc_ros/__init__.py."""
    text = (ROOT / NAME / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{NAME}/__init__.py has no line like: __version__ = "1.2.3"')
    return match[1]


def share_files(folder: str, *patterns: str) -> tuple[str, list[str]]:
    """One data_files entry that mirrors a source folder under share/vmloc_ros."""
    files = sorted(path for pattern in patterns for path in (ROOT / folder).glob(pattern))
    return f"{SHARE}/{folder}", [str(path.relative_to(ROOT)) for path in files]


setup(
    name=NAME,
    version=version(),
    description="Camera + lidar localization with VMLoc (AAAI 2021) for ROS 2",
    long_description="Trains VMLoc pose networks from bags and datasets, and serves them as a ROS 2 node.",
    license="Apache-2.0",
    author="vmloc_ros maintainers",
    maintainer="vmloc_ros maintainers",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*", "training", "training.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        share_files("launch", "*.launch.py"),
        share_files("launch/examples", "*.launch.py"),
        share_files("config", "*.yaml", "*.rviz", "*.foxglove.json", "fastdds.xml"),
        share_files("config/examples", "*.yaml"),
        share_files("config/train", "*.yaml"),
        share_files("config/train/reduced", "*.yaml"),
        share_files("config/train/systems", "*.yaml"),
        share_files("resource", "*.safetensors"),
    ],
    zip_safe=False,
    install_requires=[
        "numpy",
        "opencv-python-headless<5",  # 5.x changed the codes of element types
        "pyyaml",
        "safetensors",
        "torch>=2.4",
        "torchvision",
    ],
    extras_require={
        "ros": ROS_WHEELS,
        "training": ["embreex", "matplotlib", "rosbags", "scipy", "tabulate", "tensorboard", "tqdm", "trimesh"],
        "test": [
            "catkin_pkg",
            "hypothesis",
            "import-linter",
            "mypy~=2.4.1",  # newer versions of mypy and ruff report new errors
            "pytest>=7",
            "pytest-timeout",
            "pytest-xdist",
            "ruff~=0.17.6",
            "scipy",
            "setuptools",
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": [
            "vmloc_node = vmloc_ros.node:main",
            "vmloc_initialpose = vmloc_ros.initialpose:main",
            "vmloc = training.cli:main",
        ]
    },
)
