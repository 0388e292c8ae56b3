"""Videos become shards of clips beside the pictures, with times, audited, and accounted for."""

from dataclasses import replace

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from PIL import Image

from pipelines.clips import ClipReader
from pipelines.curate import CurateConfig, curate
from pipelines.encode import EncodeConfig, check, encode
from pipelines.latents import AuditFailed
from pipelines.rules import Rules
from pipelines.sources import InputError
from showo2.shards import Manifest
from showo2.shards.__main__ import Show, show
from showo2.vae import WanVAE, center_crop_resize, to_pixels
from tests.pipelines.conftest import picture, write_tar
from tests.pipelines.videos import CARPHONE, make_video, turned

pytestmark = pytest.mark.timeout(300)  # for a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Pictures and clips of one tar: (config of the clips, report of the pictures, report of the clips)."""
    folder = tmp_path_factory.mktemp("videos")
    videos = {"phone": CARPHONE.read_bytes(), "turned": turned(CARPHONE.read_bytes(), 176, 144),
              "short": make_video(np.arange(24) / 24, size=(160, 160)), "cut": CARPHONE.read_bytes()[:300_000]}
    members = [("still.jpg", picture(3, (160, 160))), ("still.txt", b"a still picture")]
    for name, data in videos.items():
        members += [(f"{name}.mp4", data), (f"{name}.txt", b"a man talks in a car")]
    write_tar(folder / "00000.tar", members)
    out = str(tmp_path_factory.mktemp("data"))
    curate(CurateConfig((f"web={folder}",), out, rules=Rules(min_side=100), workers=0))
    pictures = encode(EncodeConfig(out, workers=0, min_psnr=0))  # shapes are what this VAE knows
    config = EncodeConfig(out, size=16, clips=True, workers=0, min_psnr=0)
    return config, pictures, encode(config)


def ledger(root: str) -> dict[str, tuple[str, str | None]]:
    rows = pq.read_table(f"{root}/ledger.parquet").to_pylist()
    return {row["key"]: (row["outcome"], row["reason"]) for row in rows}


def test_pictures_and_clips_stand_beside_each_other_and_all_are_accounted_for(run):
    config, pictures, clips = run
    assert pictures.rows == 1
    assert Manifest.load(config.data).totals() == {"web pair 1x8x8": 1, "web pair 5x2x2": 2}
    assert ledger(config.data) == {
        "still": ("kept", None), "phone": ("kept", None), "turned": ("kept", None), "short": ("failed", "too_short"),
        "cut": ("failed", "undecodable")}
    assert clips.failed == {"too_short": 1}


def rows(root: str) -> dict[str, object]:
    manifest = Manifest.load(root)
    [clips] = [shard for shard in manifest.shards if shard.bucket[0] > 1]
    reader = manifest.open(clips)
    return {(row.width, row.height): row for row in map(reader.read, range(reader.rows))}


def test_a_row_is_the_clip_that_its_uid_draws(run):
    row = rows(run[0].data)[176, 144]
    clip = ClipReader().read(CARPHONE.read_bytes(), row.uid)
    assert np.allclose(row.times, clip.times, atol=1e-5) and len(row.times) == 17
    assert row.latents.shape == (16, 5, 2, 2) and row.crop == (16, 0, 160, 144)
    assert row.text.text == "a man talks in a car"
    frames = to_pixels([center_crop_resize(Image.fromarray(frame), (16, 16))[0] for frame in clip.frames])
    pixels = frames[:, :, 0].transpose(0, 1)[None]
    vae = WanVAE.from_pretrained("tiny:vae")
    assert (vae.encode(pixels)[0] - row.latents.float()).abs().max() < 5e-3
    # The first latent frame of a clip is the latent of its first frame as a picture.
    assert (vae.encode(pixels[:, :, :1])[0, :, 0] - row.latents[:, 0].float()).abs().max() < 5e-3


def test_rotated_videos_are_encoded_upright(run):
    assert (144, 176) in rows(run[0].data)


def test_show_writes_a_clip_as_mp4(run, tmp_path):
    [shard] = [shard for shard in Manifest.load(run[0].data).shards if shard.bucket[0] > 1]
    show(Show(f"{run[0].data}/latents/{shard.path}", str(tmp_path), rows=(1,)))
    [path] = tmp_path.iterdir()
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 17 and container.streams.video[0].average_rate == 8


def test_another_draw_is_another_clip_beside_the_first(run):
    first = rows(run[0].data)[176, 144]
    report = encode(replace(run[0], draw=1))
    assert report.fresh == 1 and encode(replace(run[0], draw=1)).fresh == 0
    manifest = Manifest.load(run[0].data)
    shards = [shard for shard in manifest.shards if "draw1" in shard.path]
    assert [shard.rows for shard in shards] == [2]
    reader = manifest.open(shards[0])
    second = next(row for row in map(reader.read, range(2)) if row.width == 176)
    assert second.uid == first.uid and second.times != first.times


def test_a_vae_that_is_not_causal_is_found_out(run, monkeypatch):
    honest = WanVAE.encode

    def later_frames_leak(self, pixels, sample=None):
        return honest(self, pixels, sample) + 0.1 * (pixels.shape[2] > 1)

    monkeypatch.setattr(WanVAE, "encode", later_frames_leak)
    with pytest.raises(AuditFailed, match="first latent frames of clips differ by 0.1"):
        encode(replace(run[0], draw=2))


def test_mistakes_in_options_are_told(run):
    with pytest.raises(InputError, match="--width 100: need a multiple of 16"):
        check(replace(run[0], width=100))
    with pytest.raises(InputError, match="--draw 1 is of clips"):
        check(replace(run[0], clips=False, draw=1))
    assert replace(run[0], size=480, width=832).options.bucket == (5, 60, 104)


def test_full_size_vae_makes_5x54x54x16_of_a_clip():
    """On the meta device: the sizes are the network's own, the numbers would take a quarter of an hour."""
    with torch.device("meta"):
        state = AutoencoderKLWan().state_dict()
    vae = WanVAE({}, state, device="meta")
    latents = vae.network._encode(torch.empty(1, 3, 17, 432, 432, device="meta")).chunk(2, dim=1)[0]
    assert latents.permute(0, 2, 3, 4, 1).shape == (1, 5, 54, 54, 16)
