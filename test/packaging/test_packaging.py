# SPDX-License-Identifier: Apache-2.0
"""What is declared agrees with what is there: versions, shipped files, executables, ROS dependencies."""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vmloc_ros

ROOT = Path(__file__).resolve().parents[2]
ROS_NAMES = ("_msgs", "_srvs", "_ros", "_bridge", "rclpy", "launch", "_index_python")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments with which setup.py calls setup()."""
    setuptools = pytest.importorskip("setuptools")
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


@pytest.fixture(scope="module")
def package_xml() -> Any:
    """package.xml, read and validated by catkin_pkg."""
    return pytest.importorskip("catkin_pkg.package").parse_package(str(ROOT))


def test_version_is_the_same_everywhere(declared: dict[str, Any], package_xml: Any) -> None:
    assert declared["version"] == package_xml.version == vmloc_ros.__version__


def test_package_xml_says_what_colcon_needs(declared: dict[str, Any], package_xml: Any) -> None:
    assert package_xml.package_format == 3
    assert package_xml.get_build_type() == "ament_python"
    assert package_xml.name == declared["name"]
    assert package_xml.licenses == ["Apache-2.0"]


def test_a_released_package_depends_on_nothing_that_pip_alone_has(package_xml: Any) -> None:
    """Bloom refuses such rosdep keys; torch's exist for some Ubuntu releases."""
    dependencies = [*package_xml.exec_depends, *package_xml.test_depends]
    assert not [dependency.name for dependency in dependencies if dependency.name.endswith("-pip")]


def test_the_commands_in_the_documents_skip_only_declared_keys(package_xml: Any) -> None:
    declared = {dependency.name for dependency in package_xml.exec_depends}
    for name in ("README.md", "CONTRIBUTING.md", ".github/workflows/ci.yml"):
        (skipped,) = set(re.findall(r'--skip-keys "(.*?)"', (ROOT / name).read_text()))
        assert set(skipped.split()) <= declared


def test_colcon_finds_pytest_in_the_test_extra(declared: dict[str, Any]) -> None:
    assert any(requirement.startswith("pytest") for requirement in declared["extras_require"]["test"])


def imports_of(file: Path) -> Iterator[str]:
    """Top-level names of all packages that a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_every_ros_package_in_use_is_declared(package_xml: Any) -> None:
    files = [*ROOT.glob("vmloc_ros/**/*.py"), *ROOT.glob("training/**/*.py"), *ROOT.glob("launch/**/*.py")]
    used = {name for file in files for name in imports_of(file) if name.endswith(ROS_NAMES)} - {"vmloc_ros"}
    assert "rclpy" in used
    assert used <= {dependency.name for dependency in package_xml.exec_depends}


def test_every_shipped_file_is_installed_below_the_same_folder(declared: dict[str, Any]) -> None:
    there = {path.relative_to(ROOT) for name in ("launch", "config") for path in (ROOT / name).rglob("*.*")}
    there |= {path.relative_to(ROOT) for path in (ROOT / "resource").glob("*.safetensors")}
    there = {path for path in there if "__pycache__" not in path.parts}
    installed = {
        Path(target, Path(file).name): Path(file) for target, files in declared["data_files"] for file in files
    }
    assert there <= set(installed.values())
    for target, file in installed.items():
        if file in there:
            assert target == Path("share/vmloc_ros") / file
    assert installed[Path("share/ament_index/resource_index/packages/vmloc_ros")] == Path("resource/vmloc_ros")


def test_every_folder_with_code_is_a_declared_package(declared: dict[str, Any]) -> None:
    code = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for package in ("training", "vmloc_ros")
        for file in (ROOT / package).rglob("*.py")
    }
    assert set(declared["packages"]) == code


def test_executables_name_functions_that_exist(declared: dict[str, Any]) -> None:
    for script in declared["entry_points"]["console_scripts"]:
        module, _, function = script.partition(" = ")[2].partition(":")
        place = ROOT / module.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
        assert function in {*imported, *(node.name for node in tree.body if isinstance(node, ast.FunctionDef))}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix into which the package was installed by the commands that `colcon build` runs."""
    pytest.importorskip("setuptools")
    source, prefix = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("prefix")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml"):
        shutil.copy(ROOT / name, source)
    for name in ("vmloc_ros", "training", "launch", "config", "resource"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-W", "ignore", "setup.py", "install", "--single-version-externally-managed"]
    command += ["--prefix", str(prefix), "--record", str(source / "record.txt")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=100)
    return prefix


def test_colcon_style_installation_has_executables_where_ros2_run_looks(installed: Path) -> None:
    assert {path.name for path in (installed / "lib" / "vmloc_ros").iterdir()} == {
        "vmloc",
        "vmloc_initialpose",
        "vmloc_node",
    }


def test_colcon_style_installation_has_shipped_files(installed: Path) -> None:
    share = installed / "share" / "vmloc_ros"
    assert (share / "package.xml").is_file()
    for file in ("fastdds.xml", "train/seven_scenes.yaml", "train/systems/vmloc.yaml", "train/reduced/street.yaml"):
        assert (share / "config" / file).read_bytes() == (ROOT / "config" / file).read_bytes()
    assert (installed / "share/ament_index/resource_index/packages/vmloc_ros").is_file()


def test_tf_message_has_the_type_hash_of_other_ros_2_machines() -> None:
    """Endpoints compare it; the expected one comes from the rosbags library's own definition."""
    description = Path(sys.prefix, "share", "tf2_msgs", "msg", "TFMessage.json")
    if not description.exists():
        pytest.skip("tf2_msgs is not the project's own build; the distribution has it")
    typesys = pytest.importorskip("rosbags.typesys")
    expected = typesys.get_typestore(typesys.Stores.ROS2_JAZZY).hash_rihs01("tf2_msgs/msg/TFMessage")
    hashes = {entry["type_name"]: entry["hash_string"] for entry in json.loads(description.read_text())["type_hashes"]}
    assert hashes["tf2_msgs/msg/TFMessage"] == expected


def test_the_changelog_that_bloom_reads_is_that_of_the_project() -> None:
    changelog = pytest.importorskip("catkin_pkg.changelog")
    script = runpy.run_path(str(ROOT / "scripts" / "changelog.py"))
    assert (ROOT / "CHANGELOG.rst").read_text() == script["to_rst"]((ROOT / "CHANGELOG.md").read_text()), (
        "run scripts/changelog.py"
    )
    # As released, and after another release: docutils takes the title of an only section for a subtitle.
    text = (ROOT / "CHANGELOG.md").read_text().replace("[Unreleased]", "[99.0.0] - 2026-01-02")
    text += "\n## [0.0.1] - 2026-01-01\n\n### Added\n\n- All.\n"
    found = changelog.populate_changelog_from_rst(changelog.Changelog(), script["to_rst"](text))
    items = sum(len(part.bullets) for _, _, content in found.foreach_version() for part in content)
    assert items == text.count("\n- ") > 1


def test_a_changelog_becomes_restructured_text() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "changelog.py"))
    text = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- `a_b`, **c**\n  d* ([e](f.md))\n"
    text += "\n## [0.1.0] - 2026-01-02\n\n### Fixed\n\n- g_\n"
    assert script["to_rst"](text).splitlines()[5:] == [
        "",
        "Forthcoming",
        "-----------",
        r"* Added: ``a_b``, c d\* (e)",
        "",
        "0.1.0 (2026-01-02)",
        "------------------",
        r"* Fixed: g\_",
    ]
    with pytest.raises(ValueError, match="expected '## "):
        script["to_rst"]("# C\n## 0.1.0\n")
