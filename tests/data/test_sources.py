"""A source serves every row of its kind once an epoch, in an order of its own."""

from dataclasses import replace

import pytest

from showo2.data.mixture import Entry
from showo2.data.sources import Source
from showo2.shards import DamagedRow, Manifest
from tests.train.small import BUCKET, small_dataset, uid_of, write_shard

PAIRS = Entry("pairs", "generate", "pair", 1)


def uids(source, numbers):
    return [row.uid for row in source.read(source.places(numbers).tolist())]


def test_every_row_once_an_epoch_and_epochs_differ(manifest):
    source = Source(PAIRS, [manifest], BUCKET, seed=0)
    first, second = uids(source, range(48)), uids(source, range(48, 96))
    assert sorted(first) == sorted(second) == sorted(uid_of("web", row) for row in range(48))
    assert first != second


def test_entries_and_seeds_have_orders_of_their_own(manifest):
    orders = {tuple(Source(Entry(name, "generate", "pair", 1), [manifest], BUCKET, seed).places(range(48)).tolist())
              for name in ("a", "b") for seed in (0, 1)}
    assert len(orders) == 4


def test_several_datasets_count_on(manifest):
    source = Source(PAIRS, [manifest, manifest], BUCKET, seed=0)
    assert source.rows == 96
    assert source.text(50) == source.text(2)


def test_kind_and_source_choose_the_rows(manifest):
    entry = Entry("talk", "converse", "conversation", 1, ("instruct",))
    source = Source(entry, [manifest], BUCKET, seed=0)
    assert source.rows == 24
    assert source.read([0])[0].text.conversation()[1]["value"] == "red"


@pytest.mark.parametrize(("entry", "bucket"), [
    (Entry("x", "converse", "conversation", 1, ("web",)), BUCKET), (PAIRS, (1, 54, 54))])
def test_nothing_to_read_says_what_there_is(entry, bucket, manifest):
    with pytest.raises(ValueError, match=f"mixture entry {entry.name} needs .* small has .*'web pair 1x8x8': 48"):
        Source(entry, [manifest], bucket, seed=0)


def test_distillation_needs_the_teachers_pictures(manifest):
    bare = replace(manifest, shards=tuple(replace(s, teacher_path=None) for s in manifest.shards))
    with pytest.raises(ValueError, match="run jobs.encode with --teacher-size"):
        Source(Entry("d", "distill", "pair", 1), [bare], BUCKET, seed=0)


def test_memory_is_lent_again_once_no_row_in_it_is_held(manifest):
    source = Source(PAIRS, [manifest], BUCKET, seed=0)
    _, rows, _ = source.latents(range(20))
    held, known, place = rows[7], rows[7].clone(), rows.data_ptr()
    del rows
    _, others, _ = source.latents(range(20, 40))
    assert held.equal(known)
    assert others.data_ptr() != place
    del held
    uids, again, damaged = source.latents(range(10))
    assert again.data_ptr() == place
    assert again[7].equal(known)
    assert uids == [source.uid(place) for place in range(10)] and not damaged


def test_a_damaged_row_is_named_beside_the_others(tmp_path):
    path = small_dataset(tmp_path)
    shard = tmp_path / "latents" / "web-1.arrow"
    source = Source(PAIRS, [Manifest.load(path)], BUCKET, seed=0)
    _, whole, _ = source.latents(range(48))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    source = Source(PAIRS, [Manifest.load(path)], BUCKET, seed=0)
    uids, rows, damaged = source.latents(range(48))
    [(number, damage)] = damaged.items()
    assert damage.uid == uids[number] and "web-1.arrow" in str(damage)
    assert [n for n in range(48) if not rows[n].equal(whole[n])] == [number]
    read = source.read(range(48))
    assert isinstance(read.pop(number), DamagedRow)
    assert [row.uid for row in read] == [uid for n, uid in enumerate(uids) if n != number]


def test_documents_of_several_lengths_are_read_but_do_not_stack(tmp_path):
    shards = [write_shard(tmp_path, "stories", "interleaved", n, range(9 * n, 9 * n + 9), (2 + n, 8, 8)) for n in (0, 1)]
    source = Source(Entry("story", "tell", "interleaved", 1), [Manifest("documents", tuple(shards), root=str(tmp_path))],
                    BUCKET, seed=0)
    places = source.places(range(18)).tolist()
    rows = source.read(places)
    assert {row.latents.shape[1] for row in rows} == {2, 3}
    assert all(row.latents.equal(source.read([place])[0].latents) for place, row in zip(places, rows, strict=True))
    with pytest.raises(ValueError, match="do not stack"):
        source.latents(places)
