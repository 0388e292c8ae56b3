"""A source serves every row of its kind once an epoch, in an order of its own."""

from dataclasses import replace

import pytest

from showo2.data.mixture import Entry
from showo2.data.sources import Source
from tests.train.small import BUCKET, uid_of

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
    _, rows = source.latents(range(20))
    held, known, place = rows[7], rows[7].clone(), rows[0].data_ptr()
    del rows
    _, others = source.latents(range(20, 40))
    assert held.equal(known)
    assert others[0].data_ptr() != place
    del held
    _, again = source.latents(range(10))
    assert again[0].data_ptr() == place
    assert again[7].equal(known)
