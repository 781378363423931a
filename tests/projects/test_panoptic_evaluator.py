"""What the panoptic evaluators make of predictions in Detectron2's formats, write, and measure."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detectron2.data import DatasetCatalog, MetadataCatalog

from projects.data.shapes_catalog import register_shapes
from projects.evaluation import panoptic_quality
from projects.evaluation.cityscapes import CityscapesPanopticEvaluator
from projects.evaluation.panoptic import PanopticEvaluator
from tests import processes

pytestmark = pytest.mark.usefixtures("registered_small")
METRICS = [f"{measure}{ending}" for ending in ("", "_th", "_st") for measure in ("PQ", "SQ", "RQ")]


def read_ids(path):
    return np.array(Image.open(path), dtype=int) @ [1, 256, 65536]


def content(path):
    return json.loads(Path(path).read_text())


def run(evaluator, records, outputs):
    evaluator.reset()
    for record, output in zip(records, outputs):
        evaluator.process([record], [{"panoptic_seg": output}])
    return evaluator.evaluate()


@pytest.fixture
def truths(true_panoptic):
    """truths(dataset) -> its records and their segments."""

    def make(name):
        records = DatasetCatalog.get(name)
        return records, [true_panoptic(record) for record in records]

    return make


def spoilt(output):
    """Everything a few pixels to the right, the first segment dropped, and its place void."""
    ids, segments = output
    ids = ids.roll(3, dims=1)
    ids[ids == segments[0]["id"]] = 0
    return ids, [x for x in segments[1:] if (ids == x["id"]).any()]


@pytest.mark.parametrize("name", ["small_val_panoptic", "small_cityscapes_val_panoptic"])
def test_the_truth_is_perfect_and_is_written_as_it_was(name, truths, tmp_path):
    results = run(PanopticEvaluator(name, str(tmp_path)), *truths(name))
    assert list(results) == ["panoptic_seg"] and list(results["panoptic_seg"]) == METRICS
    assert results["panoptic_seg"] == dict.fromkeys(METRICS, 100)

    metadata = MetadataCatalog.get(name)
    truth = content(metadata.panoptic_json)["annotations"]
    written = content(tmp_path / "panoptic/predictions.json")["annotations"]
    assert [x["image_id"] for x in written] == [x["image_id"] for x in truth]
    for one, other in zip(written, truth):
        assert one["file_name"] == other["file_name"]
        assert one["segments_info"] == [{key: x[key] for key in ("id", "category_id")} for x in other["segments_info"]]
        ids = read_ids(tmp_path / "panoptic" / one["file_name"])
        assert (ids == read_ids(Path(metadata.panoptic_root) / one["file_name"])).all()


def test_a_separated_dataset_numbers_its_things_and_its_stuff_by_themselves(truths, tmp_path):
    name = "small_val_panoptic_separated"
    records, outputs = truths("small_val_panoptic")
    for _, segments in outputs:
        for segment in segments:
            if not segment["isthing"]:
                segment["category_id"] -= 2  # three things are before the stuff, and one class for them all instead
    results = run(PanopticEvaluator(name, str(tmp_path)), records, outputs)
    assert results["panoptic_seg"] == dict.fromkeys(METRICS, 100)


@pytest.mark.parametrize("evaluator", [PanopticEvaluator, CityscapesPanopticEvaluator])
def test_it_measures_the_panoptic_quality_as_cityscapes_script_does(evaluator, truths, tmp_path):
    name = "small_cityscapes_val_panoptic"
    records, outputs = truths(name)
    outputs = [spoilt(output) for output in outputs]
    results = run(evaluator(name, str(tmp_path)), records, outputs)["panoptic_seg"]

    metadata, truth = MetadataCatalog.get(name), content(MetadataCatalog.get(name).panoptic_json)
    mappings = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    dataset_ids = {contiguous: original for mapping in mappings for original, contiguous in mapping.items()}
    pairs = [
        (
            read_ids(Path(metadata.panoptic_root) / annotation["file_name"]), annotation["segments_info"],
            ids.numpy(), [{**x, "category_id": dataset_ids[x["category_id"]]} for x in segments],
        )
        for annotation, (ids, segments) in zip(truth["annotations"], outputs)
    ]  # fmt: skip
    expected = panoptic_quality(pairs, truth["categories"])
    endings = {"all": "", "things": "_th", "stuff": "_st"}
    assert results == pytest.approx({
        f"{measure.upper()}{ending}": 100 * expected[kind][measure]
        for kind, ending in endings.items() for measure in ("pq", "sq", "rq")
    })  # fmt: skip
    assert 10 < results["PQ_th"] < results["PQ_st"] < 95


def test_classes_may_be_encoded_in_the_map(truths, tmp_path):
    name = "small_val_panoptic"
    records, outputs = truths(name)
    encoded = []
    for ids, segments in outputs:
        coded = torch.full_like(ids, -1)
        for number, segment in enumerate(segments[1:]):  # the first one is left void
            coded[ids == segment["id"]] = segment["category_id"] * 1000 + number * segment["isthing"]
        encoded.append((coded, None))
    dropped = [(torch.where(ids == segments[0]["id"], 0, ids), segments[1:]) for ids, segments in outputs]
    results = [run(PanopticEvaluator(name, str(tmp_path)), records, x) for x in (encoded, dropped)]
    assert results[0] == results[1] and results[0]["panoptic_seg"]["PQ"] < 100
    assert encoded[0][0].min() == -1  # the model's own output stays as it is


def test_a_category_without_isthing_is_the_datasets_own(truths, tmp_path):
    name = "small_val_panoptic"
    records, outputs = truths(name)
    for annotation, (_, segments) in zip(content(MetadataCatalog.get(name).panoptic_json)["annotations"], outputs):
        segments[:] = [{"id": x["id"], "category_id": x["category_id"]} for x in annotation["segments_info"]]
    results = run(PanopticEvaluator(name, str(tmp_path)), records, outputs)
    assert results["panoptic_seg"] == dict.fromkeys(METRICS, 100)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids, s: s[0].update(category_id=77), "Segment .* of stuff class 77, but 'small_val_panoptic' has"),
        (lambda ids, s: s[0].update(isthing=True), "Segment .* of thing class 3, but .* classes \\[0, 1, 2\\]"),
        (lambda ids, s: s[0].update(isthing=None, category_id=77), "unknown category_id 77"),
        (lambda ids, s: s.pop(), "map has ids that are not in its segments_info"),
        (lambda ids, s: s.append({**s[0], "id": 55}), "no pixel in the map: ids 55"),
        (lambda ids, s: ids[0].fill_(-1), "from -1 to"),
        (lambda ids, s: ids[0].fill_(2**24), "to 16777216; they must be"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once_that_names_the_image(change, message, truths, tmp_path):
    records, outputs = truths("small_val_panoptic")
    change(*outputs[1])
    evaluator = PanopticEvaluator("small_val_panoptic", str(tmp_path))
    evaluator.reset()
    evaluator.process([records[0]], [{"panoptic_seg": outputs[0]}])
    with pytest.raises(ValueError, match=f"^{records[1]['file_name']}: .*{message}"):
        evaluator.process([records[1]], [{"panoptic_seg": outputs[1]}])


def test_every_image_must_be_predicted(truths, tmp_path):
    records, outputs = truths("small_val_panoptic")
    evaluator = PanopticEvaluator("small_val_panoptic", str(tmp_path))
    with pytest.raises(ValueError, match="2 of the 4 images of .*panoptic_val.json have no prediction.* id 3"):
        run(evaluator, records[:2], outputs)


def test_a_test_split_is_only_written(truths, tmp_path):
    metadata = MetadataCatalog.get("small_val_panoptic")
    truth = content(metadata.panoptic_json)
    del truth["annotations"]
    (tmp_path / "info.json").write_text(json.dumps(truth))
    values = {key: value for key, value in metadata.as_dict().items() if key != "name"}
    MetadataCatalog.get("small_test_panoptic").set(**{**values, "panoptic_json": str(tmp_path / "info.json")})
    try:
        results = run(PanopticEvaluator("small_test_panoptic", str(tmp_path)), *truths("small_val_panoptic"))
    finally:
        MetadataCatalog.remove("small_test_panoptic")
    assert results == {}
    written = content(tmp_path / "panoptic/predictions.json")["annotations"]
    assert [x["file_name"] for x in written] == [f"00000000000{k}.png" for k in (1, 2, 3, 4)]
    assert all((tmp_path / "panoptic" / x["file_name"]).exists() for x in written)


def test_a_dataset_that_is_not_there_is_an_error_before_inference(tmp_path):
    with pytest.raises(FileNotFoundError, match="panoptic_val2017.json"):
        PanopticEvaluator("coco_2017_val_panoptic", str(tmp_path))


def test_the_qualities_are_logged(truths, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="projects.evaluation.panoptic"):
        run(PanopticEvaluator("small_val_panoptic", str(tmp_path)), *truths("small_val_panoptic"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in caplog.text.splitlines() if "|" in line]
    assert rows[0] == ["", "PQ", "SQ", "RQ", "#classes"]
    truth = content(MetadataCatalog.get("small_val_panoptic").panoptic_json)
    used = {x["category_id"] for annotation in truth["annotations"] for x in annotation["segments_info"]}
    things = len([k for k in used if k <= 3])
    assert rows[2:] == [
        [kind, "100.000", "100.000", "100.000", str(n)]
        for kind, n in (("all", len(used)), ("things", things), ("stuff", len(used) - things))
    ]


def evaluate_rank(rank, root, folder):
    """Evaluate every second image as one of two processes, and write the results."""
    from detectron2.utils import comm

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    register_shapes(root)
    records = DatasetCatalog.get("small_val_panoptic")[rank::2]
    outputs = []
    for record in records:
        ids = torch.from_numpy(read_ids(record["pan_seg_file_name"]))
        outputs.append(spoilt((ids, record["segments_info"])))
    results = run(PanopticEvaluator("small_val_panoptic", folder), records, outputs)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))


def test_processes_evaluate_together(small_root, truths, tmp_path):
    logs = [tmp_path / f"log{rank}.txt" for rank in (0, 1)]
    workers = [processes.start(evaluate_rank, logs[k], k, str(small_root), str(tmp_path)) for k in (0, 1)]
    for worker, log in zip(workers, logs):
        worker.join(120)
        assert worker.exitcode == 0, log.read_text()[-3000:]
    records, outputs = truths("small_val_panoptic")
    alone = run(PanopticEvaluator("small_val_panoptic", str(tmp_path / "alone")), records, map(spoilt, outputs))
    assert content(tmp_path / "rank0.json") == alone and content(tmp_path / "rank1.json") is None
    names = {path.name for path in (tmp_path / "alone/panoptic").iterdir()}
    assert len(names) == 5 and {path.name for path in (tmp_path / "panoptic").iterdir()} == names
