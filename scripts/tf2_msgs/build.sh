#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds tf2_msgs/TFMessage into a venv that has the ROS 2 wheels (package "tf2_msgs" is on no registry).
#   scripts/tf2_msgs/build.sh VENV
set -euo pipefail

source_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="$(cd "${1:?usage: build.sh VENV}" && pwd)"
build_dir="$venv/build_tf2_msgs"

# Variables of another venv's Python must not name that venv's libraries, and find_package must see this venv only.
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH PYTHONHOME
export AMENT_PREFIX_PATH="$venv" CMAKE_PREFIX_PATH="$venv" PATH="$venv/bin:$PATH"

rm -rf "$build_dir"
cmake -S "$source_dir" -B "$build_dir" -G Ninja \
    -DCMAKE_INSTALL_PREFIX="$venv" \
    -DCMAKE_BUILD_TYPE=Release \
    -DPython3_EXECUTABLE="$venv/bin/python" \
    -DPython3_FIND_VIRTUALENV=ONLY \
    -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF \
    -DCMAKE_FIND_USE_SYSTEM_PACKAGE_REGISTRY=OFF \
    -DBUILD_TESTING=OFF \
    -Wno-dev
cmake --build "$build_dir"
cmake --install "$build_dir"
rm -rf "$build_dir"

"$venv/bin/python" -c "from tf2_msgs.msg import TFMessage; TFMessage()"
