"""The command: the examples from the demo, and what it says where it cannot start."""

import sys

from util import app
from util.config import dump_config, load_config
from util.demo_data import CLASS_NAMES, write_demo


def test_examples_are_held_out_classes_of_the_demo(tmp_path):
    write_demo(tmp_path / "demo", train=1, val=30, size=160)
    snapshot = tmp_path / "run" / "snapshot"
    snapshot.mkdir(parents=True)
    (snapshot / "last.pth").touch()
    places = ["data_root", "demo", "val_list", "demo/val.txt", "list_dir", "lists"]
    places[1::2] = [str(tmp_path / place) for place in places[1::2]]
    cfg = load_config("config/demo/demo_split1_resnet18.yaml", places)
    dump_config(cfg, tmp_path / "run" / "config.yaml")
    examples = app.demo_examples(str(tmp_path / "run"))
    assert 0 < len(examples) <= 5
    for picture, name, queries in examples:
        assert name in CLASS_NAMES[5:10] and len({picture, *queries}) == 4
    assert app.demo_examples(str(snapshot / "last.pth")) == examples
    (tmp_path / "demo" / "val.txt").unlink()
    assert app.demo_examples(str(tmp_path / "run")) == []
    (tmp_path / "other.pth").touch()
    assert app.demo_examples(str(tmp_path / "other.pth")) == app.demo_examples("owner/name") == []


def test_a_missing_gradio_is_one_line(monkeypatch, error_line):
    monkeypatch.delitem(sys.modules, "util.page.layout", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that what the command sets ends with the test
    said = error_line(app.main, ["--weights", "none.pth"])
    assert said == "error: gradio is not installed: pip install -r requirements-app.txt\n"


def test_a_port_is_one(error_line):
    said = error_line(app.main, ["--weights", "none.pth", "--port", "99999"])
    assert said.startswith("error: argument --port: 99999: should be at most 65535")
