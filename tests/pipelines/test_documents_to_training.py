"""From tars to training: pairs, a clip, stories and texts go through the pipeline and into one mixture."""

import json
from dataclasses import replace

import pytest

from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, encode
from pipelines.rules import Rules
from showo2.data.mixture import Entry
from showo2.recipes.tiny import CLIP, INTERLEAVED
from showo2.train.trainer import Trainer
from tests.pipelines.conftest import write_tar
from tests.pipelines.test_encode import scene
from tests.pipelines.test_encode_documents import sample, sentence, story
from tests.pipelines.videos import CARPHONE
from tests.train.small import story as metrics

pytestmark = pytest.mark.timeout(300)  # for a busy machine


def test_a_mixture_with_stories_and_texts_trains_on_what_the_pipeline_made(tmp_path):
    long = "a red circle above a blue square. " * 200
    turns = [{"from": "human", "value": "how many?"}, {"from": "gpt", "value": "two"}]
    write_tar(tmp_path / "pairs.tar", [(f"{n}.{e}", d) for n in range(6) for e, d in
                                       (("jpg", scene(n)), ("txt", sentence(n).encode()))])
    watched = [{"from": "human", "value": "<video>\nwho talks?"}, {"from": "gpt", "value": "a man"}]
    write_tar(tmp_path / "clips.tar", [("c.mp4", CARPHONE.read_bytes()), ("c.txt", b"a man talks in a car"),
                                       ("d.mp4", CARPHONE.read_bytes()), ("d.json", json.dumps({"conversations": watched}).encode())])
    write_tar(tmp_path / "stories.tar", [
        *story("a", 10, count=2), *story("b", 20), *story("c", 30, count=5), *sample("d", [long], ["x"], scene(40)),
        *sample("e", [sentence(50), sentence(51)], ["x", "y"], scene(50), scene(51)[:-3000])])  # fmt: skip
    write_tar(tmp_path / "texts.tar", [("a.txt", long.encode()), ("b.txt", sentence(60).encode()),
                                       ("c.json", json.dumps({"conversations": turns}).encode())])
    named = [f"{name}={tmp_path}/{name}.tar" for name in ("pairs", "clips", "stories")]
    data = str(tmp_path / "data")
    curate(CurateConfig((*named, f"texts:text={tmp_path}/texts.tar"), data, Rules(min_side=100), workers=0))
    encode(EncodeConfig(data, workers=0))
    report = encode(EncodeConfig(data, workers=0, clips=True, min_psnr=0))  # shapes are what this VAE knows
    assert report.rows == 6 + 2 + 5 + 3 and not report.failed

    shares = {"generate": 2, "caption": 1, "generate-clips": 1, "caption-clips": 1, "stories": 5}
    mixture = [replace(entry, samples=shares[entry.name]) for entry in INTERLEAVED.mixture]
    recipe = replace(INTERLEAVED, start="parts", mixture=(*mixture, Entry("texts", "read", "text", 3),
                     Entry("watched", "converse", "conversation", 1, bucket=CLIP)), steps=3, checkpoint_every=3, log_every=1)  # fmt: skip
    assert Trainer(recipe, (data,), tmp_path / "run").run() == "finished"
    steps = metrics(tmp_path / "run")
    assert len(steps) == 3 and all(0 < step["loss"] < 100 and step["ntp"] > 0 and step["flow"] > 0 for step in steps)
    assert not any(step.get("lost") or step.get("skipped") for step in steps)
    # The stories' words and pictures are learned without any other kind beside them, too.
    alone = replace(recipe, mixture=(Entry("stories", "tell", "interleaved", 4, sources=("stories",)),))
    assert Trainer(alone, (data,), tmp_path / "alone").run() == "finished"
    assert all(step["ntp"] > 0 and step["flow"] > 0 for step in metrics(tmp_path / "alone"))
