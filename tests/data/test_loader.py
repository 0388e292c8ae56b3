"""The loader's global batches do not depend on ranks, cut points or micro-batches."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from showo2.data.documents import Pairs
from showo2.data.loader import Batches, Loader, Stream, read_blocklist
from showo2.data.mixture import Entry
from showo2.sequence import IGNORE
from showo2.shards import Manifest
from tests.generate.checkpoint import byte_tokenizer
from tests.train.small import BUCKET, small_dataset

TOKENIZER = byte_tokenizer()
MIXTURE = (Entry("generate", "generate", "pair", 4), Entry("caption", "caption", "pair", 2),
           Entry("converse", "converse", "conversation", 2))
STREAM = Stream(MIXTURE, BUCKET, context=96, style="plain", seed=0, width=32, caption_dropout=0.1, teacher_size=64)


def step(manifest, world, state=None, stream=STREAM, at=0):
    """All ranks' batches of one step."""
    return [Batches(stream, [manifest], TOKENIZER, rank, world, at, state)[at] for rank in range(world)]


def content(batches):
    """What a global batch is, whoever holds it: uids, the noised latents of every medium, all text targets."""
    uids = sorted(uid for b in batches for uid in b.uids)
    media = [(float(v.t[i]), float((v.latents[i] + 3 * v.noise[i]).sum())) for b in batches for m in b.micro
             for v in m.visuals for i in range(len(v.t))]
    targets = sorted(int(y) for b in batches for m in b.micro for y in m.labels[m.labels != IGNORE])
    return uids, sorted(media), targets


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4))
def test_any_number_of_ranks_resumes_the_same_global_batches(manifest, worlds):
    state = alone = None
    for world in worlds:
        batches, single = step(manifest, world, state), step(manifest, 1, alone)
        assert content(batches) == content(single)
        state, alone = (json.loads(json.dumps(b[0].state)) for b in (batches, single))
        assert all(b.state == state for b in batches)
        assert state == alone
        assert len(json.dumps(state)) < 1024


def packs(batches):
    """Which documents share a row, in the whole global batch: token ids without padding."""
    return sorted(tuple(row.tolist()) for b in batches for m in b.micro for row in m.ids)


def test_4_then_2_then_3_ranks_go_through_an_epoch_as_if_nothing_had_happened(manifest):
    """Cut twice in the middle of an epoch of 48 rows: the samples of one rank, the packs of a run that had 2 or 3 ranks
    from the beginning."""
    state = None
    for at, world in enumerate([4, 4, 4, 2, 2, 3, 3, 3, 3]):
        batches = step(manifest, world, state, at=at)
        alone, never_cut = (
            [Batches(STREAM, [manifest], TOKENIZER, rank, ranks, 0, None)[at] for rank in range(ranks)]
            for ranks in (1, world))
        assert content(batches) == content(alone) and batches[0].state == alone[0].state
        assert packs(batches) == packs(never_cut)
        state = json.loads(json.dumps(batches[0].state))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 5), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_a_batch_is_a_function_of_its_step_wherever_one_begins(manifest, cut, ahead, world, weights):
    mixture = tuple(replace(entry, samples=n) for entry, n in zip(MIXTURE, weights, strict=True))
    stream = replace(STREAM, mixture=mixture)
    at = cut + ahead
    state = Batches(stream, [manifest], TOKENIZER, 0, 1, 0, None)._cursor.skip(cut * sum(weights)).state_dict()
    for rank in range(world):
        whole = Batches(stream, [manifest], TOKENIZER, rank, world, 0, None)[at]
        resumed = Batches(stream, [manifest], TOKENIZER, rank, world, cut, state)[at]
        assert whole.uids == resumed.uids and whole.state == resumed.state
        assert packs([whole]) == packs([resumed])


def test_worker_processes_give_the_same_batches_from_the_middle_of_an_epoch_on(manifest):
    [first] = step(manifest, 1)
    threaded, processes = (Loader(STREAM, [manifest], TOKENIZER, 0, 2, 1, first.state, workers) for workers in (0, 2))
    for one, other, _ in zip(threaded, processes, range(6), strict=False):
        assert one.uids == other.uids and one.state == other.state
        assert packs([one]) == packs([other]) and content([one]) == content([other])
    threaded.close()


def test_blocked_uids_are_left_out_and_cost_no_neighbour(manifest, tmp_path):
    [whole] = step(manifest, 1)
    (tmp_path / "blocked.txt").write_text(f"# taken down\n{whole.uids[2].upper()}\n\n")
    blocked = read_blocklist(str(tmp_path / "blocked.txt"))
    [batch] = step(manifest, 1, stream=replace(STREAM, blocked=blocked))
    assert batch.lost == [] and batch.state == whole.state
    assert sorted(batch.uids) == sorted(uid for uid in whole.uids if uid not in blocked) and len(blocked) == 1
    (tmp_path / "blocked.txt").write_text("x1\n")
    with pytest.raises(ValueError, match="'x1' is no uid"):
        read_blocklist(str(tmp_path / "blocked.txt"))
    assert read_blocklist("") == frozenset()
    with pytest.raises(ValueError, match=r"--blocklist .*nothing.txt: no such file"):
        read_blocklist(str(tmp_path / "nothing.txt"))


def test_clips_documents_and_texts_share_a_batch_and_every_rank_has_every_shape(everything):
    mixture = (Entry("image", "generate", "pair", 2), Entry("video", "generate", "pair", 2, bucket=(5, 8, 8)),
               Entry("story", "tell", "interleaved", 2), Entry("text", "read", "text", 2))
    stream = replace(STREAM, mixture=mixture, context=256)
    for at in range(4):
        ranks = step(everything, 2, at=at, stream=stream)
        for batch in ranks:
            assert [tuple(v.latents.shape[1:]) for v in batch.micro[0].visuals] == [(16, 1, 8, 8), (16, 5, 8, 8)]
        assert sum(len(batch.uids) for batch in ranks) == 8 and not any(batch.lost for batch in ranks)
    assert content(step(everything, 3, stream=stream)) == content(step(everything, 1, stream=stream))


def test_ranks_get_nearly_equal_work(manifest):
    tokens = [batch.tokens for batch in step(manifest, 2)]
    assert max(tokens) <= 1.2 * min(tokens)


def test_background_batches_are_those_prepared_in_turn(manifest):
    loader = Loader(STREAM, [manifest], TOKENIZER)
    quiet, batches = loader.batches, iter(loader)
    for step in range(5):
        assert next(batches).uids == quiet[step].uids
    loader.close()
    assert not loader._thread.is_alive()


def test_micro_batches_split_a_rank_and_lose_nothing(manifest):
    [whole], [split] = step(manifest, 1), step(manifest, 1, stream=replace(STREAM, accumulate=3))
    assert len(split.micro) == 3
    assert content([whole]) == content([split])


def test_distillation_pairs_latents_with_the_teachers_pixels(manifest):
    stream = replace(STREAM, mixture=(Entry("d", "distill", "pair", 48),), noised=0.3, noised_from=1)
    [clean], [noised] = step(manifest, 1, stream=stream), step(manifest, 1, stream=stream, at=1)
    pairs = clean.micro[0]
    assert isinstance(pairs, Pairs) and pairs.latents.shape == (48, 16, 8, 8) and pairs.pixels.shape == (48, 3, 64, 64)
    assert torch.equal(pairs.t, torch.ones(48))
    assert 0.1 < (noised.micro[0].t < 1).float().mean() < 0.5


def test_rank_without_a_sample_still_has_something_to_run(manifest):
    stream = replace(STREAM, mixture=(Entry("one", "generate", "pair", 1),))
    batches = step(manifest, 3, stream=stream)
    assert sorted(len(batch.uids) for batch in batches) == [0, 0, 1]
    assert all(batch.micro[0].ids.shape == (1, 96) for batch in batches)


def test_damage_is_named_and_costs_no_neighbour(tmp_path):
    path = small_dataset(tmp_path)
    shard = tmp_path / "latents" / "web-1.arrow"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    stream = replace(STREAM, mixture=(Entry("all", "generate", "pair", 48),))
    [batch] = step(Manifest.load(path), 1, stream=stream)
    assert len(batch.uids) == 47
    assert len(batch.lost) == 1 and "web-1.arrow" in batch.lost[0]


def test_missing_file_stops_the_loader_with_its_name(tmp_path):
    path = small_dataset(tmp_path)
    (tmp_path / "latents" / "web-1.text.arrow").unlink()
    with pytest.raises(Exception, match="web-1.text.arrow is missing"):
        for _ in zip(range(20), Loader(STREAM, [Manifest.load(path)], TOKENIZER), strict=False):
            pass
