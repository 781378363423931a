import os
import subprocess
import sys
from pathlib import Path

import projects  # noqa: F401  makes detectron2 importable before any test module asks for it
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def small_root(tmp_path_factory):
    """A datasets' folder with "small": 64×64 Shapes, three classes, 12 images to train on and 4 to evaluate."""
    from projects.data.shapes import ShapesConfig
    from projects.data.shapes_dataset import write_dataset

    root = tmp_path_factory.mktemp("datasets")
    config = ShapesConfig(
        height=64, width=64, num_train=12, num_val=4, num_things=3, min_objects=2, max_objects=4, min_size=14
    )
    write_dataset(config, str(root), "small", workers=1)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of the demo's model that finds one large object, of the first class, in every image."""
    import torch
    from detectron2.modeling import build_model
    from projects.config import setup_cfg

    cfg = setup_cfg(str(ROOT / "configs/spatial_embeddings/shapes_demo.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.zeros_(model.seed_head.output_layer.weight)
    model.seed_head.output_layer.bias.data[:] = torch.tensor([9.0, -9, -9])
    model.embedding_head.output_layer.bias.data[2:] = -0.1
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def run_script(small_root):
    """Run a script of this project in a process of its own: run_script("train_net.py", *arguments) -> its result."""

    def run(script: str, *arguments, check: bool = True) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "DETECTRON2_DATASETS": str(small_root),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert not check or result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return run
