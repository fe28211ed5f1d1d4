#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes .venv in the project root, unless it is ready to run vmloc_ros already. Needs no root.
#   bash scripts/setup.sh       run alone, or sourced first by demo.sh and test.sh
#
# With a ROS 2 distribution sourced, .venv sees the distribution's packages and gets only what they lack. Without one it
# gets the ROS 2 Jazzy wheels and the project's own build of tf2_msgs.
set -euo pipefail

project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$project/.venv"
log="$venv/setup.log"
identity="$venv/made_by_setup" # what the venv was made for: another distribution or place needs another venv
stamp="$venv/ready"            # written last: a venv without it is completed first

# The Python of a venv with ROS wheels passes these variables on to its children, which would load that venv's libraries.
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
    unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi
unset PYTHONHOME

if [ -n "${ROS_DISTRO:-}" ]; then
    ros="distribution $ROS_DISTRO"
    extras="training,test"
else
    ros="wheels"
    extras="ros,training,test"
fi

say() { printf '[setup] %s\n' "$*"; }

die() { # WHAT REMEDY...
    printf '[setup] ERROR: %s\n' "$1" >&2
    printf '[setup]        %s\n' "${@:2}" >&2
    exit 1
}

run_step() { # WHAT COMMAND...: output goes to the log; on failure show its end and the remedy that fits
    local what="$1" output="$venv/step.log" remedy
    shift
    say "$what"
    if "$@" >"$output" 2>&1; then
        { printf '== %s\n' "$what" && cat "$output"; } >>"$log"
        rm -f "$output"
        return
    fi
    { grep -v 'is ignored: it is neither' "$output" || true; } | tail -n 15 >&2
    mapfile -t remedy < <(remedy_for "$output")
    die "step failed: $what" "${remedy[@]}" "All it printed: $output"
}

remedy_for() { # OUTPUT_FILE
    if grep -q -e 'No space left on device' "$1"; then
        echo "The disk is full. Free about 10 GB for $venv, and some in ${TMPDIR:-/tmp}; then start again."
    elif grep -q -e 'No matching distribution' -e 'NewConnectionError' -e 'Connection refused' -e 'ProxyError' \
        -e 'name resolution' -e 'SSLError' -e 'imed out' "$1"; then
        echo "pip cannot reach the package index, or the index lacks a package for this machine."
        echo "Check the network, HTTPS_PROXY and PIP_INDEX_URL; then start again."
    elif grep -q -e 'BadZipFile' -e 'DO NOT MATCH THE HASHES' -e 'invalid wheel' "$1"; then
        echo "A downloaded package is damaged. Run 'pip cache purge'; then start again."
    else
        echo "Start again; if that fails the same way, remove $venv and start once more."
    fi
}

fits() { # PYTHON: does it run, is its version supported, and does it belong to the sourced distribution, if any?
    local newest=14 distribution=""
    if [ "$ros" != wheels ]; then newest=99 distribution="; import rclpy"; fi
    "$1" -c "import sys; assert (3, 10) <= sys.version_info[:2] <= (3, $newest)$distribution" >/dev/null 2>&1
}

find_python() {
    local candidate candidates=(python3 python3.12 python3.11 python3.13 python3.10 python3.14)
    for candidate in "${candidates[@]}"; do
        if fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    no_python "${candidates[@]}"
}

no_python() { # CANDIDATES...
    [ "$ros" = wheels ] || die "ROS_DISTRO is $ROS_DISTRO, but none of these imports rclpy: $*" \
        "Source it: . /opt/ros/$ROS_DISTRO/setup.bash, or use the wheels: unset ROS_DISTRO; then start again."
    die "no Python 3.10 to 3.14 found; looked for $*" \
        "sudo apt install python3 python3-venv python3-dev build-essential"
}

check_prerequisites() { # PYTHON
    local missing=()
    "$1" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    if [ "$ros" = wheels ]; then
        [ "$(uname -sm)" = "Linux x86_64" ] ||
            die "the ROS 2 wheels are for Linux x86_64, this is $(uname -sm)" "Source a ROS 2 distribution; then start again."
        { command -v gcc && command -v g++; } >/dev/null || missing+=(build-essential)
        "$1" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
            missing+=(python3-dev)
    fi
    [ ${#missing[@]} -eq 0 ] ||
        die "$("$1" --version) at $1 lacks ${missing[*]}" "sudo apt install ${missing[*]}"
    [ "$(df --output=avail -k "$project" | tail -n 1)" -gt 10000000 ] ||
        say "note: less than 10 GB free here; PyTorch with CUDA may not fit"
}

wanted_identity() { printf '%s\n%s\n' "$ros" "$project"; }

wanted_stamp() { # everything that decides what gets installed
    cd "$project"
    wanted_identity
    "$venv/bin/python" --version
    sha256sum setup.py setup.cfg vmloc_ros/__init__.py scripts/setup.sh scripts/damaged_packages.py \
        scripts/tf2_msgs/{CMakeLists.txt,build.sh,package.xml,requirements.txt,msg/TFMessage.msg}
}

is_usable() { [ "$(cat "$identity" 2>/dev/null)" = "$(wanted_identity)" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

is_ready() {
    [ -f "$stamp" ] && is_usable && [ "$(cat "$stamp")" = "$(wanted_stamp)" ] && [ -x "$venv/bin/vmloc" ] &&
        "$venv/bin/python" - <<'PY' >/dev/null 2>&1
import importlib.util

import rclpy
import tf2_msgs.msg
import training
import vmloc_ros

needed = "cv2 importlinter matplotlib mypy numpy pytest rosbags safetensors tabulate torch torchvision trimesh xdist yaml".split()
assert all(importlib.util.find_spec(name) for name in needed)
PY
}

create_venv() {
    local python options=()
    python="$(find_python)"
    check_prerequisites "$python"
    if [ "$ros" != wheels ]; then options+=(--system-site-packages); fi
    if [ -e "$venv" ]; then
        say "$venv is broken, or was made for another place or ROS 2; making it anew"
        rm -rf "$venv"
    fi
    mkdir "$venv"
    wanted_identity >"$identity"
    run_step "making $venv with $("$python" --version) for ROS 2 from $ros" "$python" -m venv ${options[@]+"${options[@]}"} "$venv"
}

install_packages() {
    local python="$venv/bin/python" arguments=() damaged
    if [ "$ros" = wheels ]; then
        arguments+=(-r "$project/scripts/tf2_msgs/requirements.txt")
    else
        # The distribution's compiled packages (messages, cv_bridge) need the major version of numpy they were built with.
        "$python" -c 'import numpy; print(f"numpy<{int(numpy.__version__.split(chr(46))[0]) + 1}")' >"$venv/constraints.txt"
        # `colcon build --symlink-install` runs `setup.py develop`, which later versions lack or no longer link with:
        # colcon then fails ("option --editable not recognized"), or copies the sources in silence.
        echo 'setuptools>=77.0.3,<80' >>"$venv/constraints.txt"
        arguments+=(-c "$venv/constraints.txt")
    fi
    run_step "installing PyTorch and all other packages (several GB with CUDA; minutes the first time)" \
        "$python" -m pip install --quiet --disable-pip-version-check -e "$project[$extras]" "${arguments[@]}"
    damaged="$("$python" "$project/scripts/damaged_packages.py")"
    if [ -n "$damaged" ]; then
        # shellcheck disable=SC2086 # one argument a package
        run_step "mending packages that an interrupted installation left damaged: ${damaged//$'\n'/ }" \
            "$python" -m pip install --quiet --disable-pip-version-check --ignore-installed --no-deps $damaged
    fi
    if [ "$ros" = wheels ]; then
        run_step "building tf2_msgs" bash "$project/scripts/tf2_msgs/build.sh" "$venv"
    fi
}

prepare() {
    exec 9<"$project"
    flock --nonblock 9 || { say "another setup is at work here; waiting for it" && flock 9; }
    if is_ready; then
        say "$venv is ready (ROS 2 from $ros)"
        return
    fi
    if [ -e "$venv" ] && [ ! -e "$identity" ]; then
        die "$venv exists and was not made by scripts/setup.sh" "Move it away; then start again."
    fi
    is_usable || create_venv
    fits "$venv/bin/python" || no_python "$venv/bin/python"
    check_prerequisites "$venv/bin/python"
    rm -f "$stamp"
    install_packages
    wanted_stamp >"$stamp.new"
    mv "$stamp.new" "$stamp"
    is_ready || die "$venv is complete but its packages cannot be imported" \
        "Remove $venv and start again; what was installed: $log"
    say "$venv is ready (ROS 2 from $ros)"
}

(prepare)
