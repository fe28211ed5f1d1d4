# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from bag_builders import calibration, clouds, images, poses, write_bag
from scene_builders import scene_of, write_scene
from training.config import load_config
from training.reproduction.experiments import VARIANTS
from training.reproduction.runs import Run, Settings
from training.reproduction.scenes import SceneData, describe, find_scenes, read_scene
from training.simulation.traversal import CLOUD_TOPIC, IMAGE_TOPIC, TRUTH_TOPIC, Traversal, is_traversal
from vmloc_ros.core.errors import DataError


def write_sequences(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "stereo.timestamps").touch()


LOOP = ("2014-06-26-09-24-58", "2014-06-26-08-53-56")


def test_robotcars_test_sequences_are_rows_of_their_own(tmp_path: Path) -> None:
    write_sequences(tmp_path, *LOOP, "2014-06-23-15-36-04", "2014-06-23-15-41-25")
    found = find_scenes(tmp_path, "robotcar", None)
    (scene,) = found.scenes
    assert scene.name == "loop"
    assert scene.regions == 22  # 1.1 km
    assert [path.name for path in scene.train] == list(LOOP)
    assert scene.rows == {"LOOP1": "2014-06-23-15-36-04", "LOOP2": "2014-06-23-15-41-25"}
    assert [path.name for path in scene.test] == list(scene.rows.values())
    assert [text.split(":")[0] for text in found.missing] == ["FULL"]
    assert Run(scene, VARIANTS["atloc"], 0).config(Settings(tmp_path)).source.robotcar.scene == "loop"


def test_a_missing_robotcar_sequence_is_named(tmp_path: Path) -> None:
    write_sequences(tmp_path, *LOOP, "2014-06-23-15-41-25")
    found = find_scenes(tmp_path, "robotcar", None)
    assert found.scenes[0].rows == {"LOOP2": "2014-06-23-15-41-25"}
    assert found.missing[0] == "LOOP1: there is no 2014-06-23-15-36-04"
    (tmp_path / LOOP[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"LOOP: .* lacks {LOOP[0]} of the train split"):
        find_scenes(tmp_path, "robotcar", ["loop"])


def bag_scene(root: Path) -> Path:
    for part, count in (("train", 2), ("test", 1)):
        for number in range(count):
            write_bag(root / "yard" / part / f"bag_{number}", images(), clouds(), poses(), calibration())
    return root


def test_a_folder_with_bags_for_training_and_test_is_a_scene(tmp_path: Path) -> None:
    (scene,) = find_scenes(bag_scene(tmp_path), "robotcar", None).scenes  # no RobotCar: what there is
    assert (scene.name, scene.kind, scene.rows, scene.simulated) == ("yard", "bags", {"yard": None}, False)
    config = load_config([], ["preprocess.modalities=[image, lidar]", "source.test_every=2"])
    data = read_scene(scene, config)
    assert (dict(data.train), dict(data.test)) == ({"bag_0": 10, "bag_1": 10}, {"bag_0": 10})
    text = describe(scene, data)
    assert text == "bags, not of `vmloc simulate`; 20 training frames in 2 sequences, 10 test frames"
    assert read_scene(scene, config).fingerprint == data.fingerprint
    (tmp_path / "yard" / "test" / "bag_0" / "metadata.yaml").touch()
    assert read_scene(scene, config).fingerprint != data.fingerprint


def test_scenes_of_the_tables_kind_come_first_and_others_on_request(tmp_path: Path) -> None:
    bag_scene(tmp_path)
    for name in ("stairs", "chess"):
        write_scene(tmp_path, name, 1)
    (tmp_path / "notes").mkdir()
    assert [scene.name for scene in find_scenes(tmp_path, "7scenes", None).scenes] == ["chess", "stairs"]
    assert [scene.name for scene in find_scenes(tmp_path, None, None).scenes] == ["chess", "stairs", "yard"]
    assert [scene.name for scene in find_scenes(tmp_path, "7scenes", ["yard"]).scenes] == ["yard"]
    assert len(find_scenes(tmp_path, "7scenes", None).missing) == 5
    with pytest.raises(DataError, match=r"no scene 'garden' in .*; it has chess, stairs, yard"):
        find_scenes(tmp_path, None, ["garden"])


def test_no_scene_at_all_is_an_error_that_lists_the_known_kinds(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no scene: neither a folder of 7-Scenes \(chess, fire, .* nor a folder NAME"
    ):
        find_scenes(tmp_path, None, None)
    with pytest.raises(DataError, match="none is not a folder"):
        find_scenes(tmp_path / "none", None, None)


def test_a_whole_scene_is_not_called_a_subset() -> None:
    scene = scene_of(official=(20, 10))
    assert describe(scene, SceneData({"a": 20}, {"b": 10}, "")) == "REAL (7scenes); 20 training frames, 10 test frames"
    assert "10 of 20 training frames, 10 test frames. A SUBSET" in describe(scene, SceneData({"a": 10}, {"b": 10}, ""))


def test_only_the_simulators_own_bags_are_called_simulated() -> None:
    traversal = Traversal(5, duration_s=2.0, image_size=(16, 12))
    first = next(iter(traversal.records()))
    topics = {record.topic for record in traversal.records()}
    assert is_traversal(first.log_ns, topics)
    assert not is_traversal(first.log_ns + 1, topics)
    assert not is_traversal(first.log_ns, topics - {TRUTH_TOPIC})
    assert not is_traversal(first.log_ns, {IMAGE_TOPIC, CLOUD_TOPIC, TRUTH_TOPIC})
