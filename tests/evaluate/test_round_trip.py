"""What the shipped VAE makes of held-out scenes still looks to the judge as it was drawn."""

import random

import torch

from showo2.evaluate.shapes import detect, judge
from showo2.tiny.render import render
from showo2.tiny.world import STYLES, draw_scene, summarise
from showo2.vae import WanVAE, center_crop_resize, to_image, to_pixels


@torch.inference_mode()
def test_held_out_scenes_survive_the_vae():
    vae, rng, wrong, number = WanVAE.from_pretrained("tiny:vae", device="cpu"), random.Random(8), [], 200
    scenes = [draw_scene(rng, held_out=True) for _ in range(number)]
    for start in range(0, number, 50):
        part = scenes[start:start + 50]
        pixels = to_pixels([center_crop_resize(render(scene, 512), (64, 64))[0] for scene in part])
        # Shards hold half precision.
        back = vae.decode(vae.encode(pixels).half().float())
        for scene, picture in zip(part, back, strict=True):
            found = detect(to_image(picture[:, 0]))
            if not all(judge(summarise(scene, style), found) for style in STYLES):
                wrong.append((scene, found))
    assert len(wrong) <= 0.005 * number, wrong
