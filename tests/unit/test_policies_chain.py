"""A chain of events is followed from its anchor to its head, and where it breaks first is told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from holdfast.contracts.chain import GENESIS, Head, Link, Verification, chained
from holdfast.policies.chain import ChainCheck

RUN = "0198c0de-0000-7000-8000-000000000001"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def link(seq: int, previous: bytes, **changes) -> Link:
    facts = dict.fromkeys(["node", "task_id", "call_id", "trace_id", "span_id"])
    unhashed = Link(
        seq=seq, at=AT, attempt=1, **({"kind": "node.started", "payload": b"{}", "hash": b""} | facts | changes)
    )
    return replace(unhashed, hash=chained(previous, RUN, unhashed))


def log(length: int = 6, *, after: int = 0, previous: bytes = GENESIS) -> list[Link]:
    links = []
    for seq in range(after + 1, after + length + 1):
        links.append(link(seq, previous))
        previous = links[-1].hash
    return links


def head(links: Sequence[Link], **changes) -> Head:
    facts = {"seq": links[-1].seq, "hash": links[-1].hash, "newest": links[-1].seq}
    return Head(**({"anchor_seq": 0, "anchor_hash": GENESIS} | facts | changes))


def checked(links: Sequence[Link], at: Head) -> Verification:
    check = ChainCheck(RUN, at)
    for each in links:
        if not check.follow(each):
            break
    return check.verdict()


LOG = log()
REST = log(4, after=2, previous=LOG[1].hash)
"""What is left when the first two were taken out, and does not say so."""
ANCHORED = [*REST, link(7, REST[-1].hash, kind="run.pruned", payload=b'{"days":1,"events":2}')]
MISCOUNTED = [*REST, link(7, REST[-1].hash, kind="run.pruned", payload=b'{"days":1,"events":1}')]
UNREADABLE = [*REST, link(7, REST[-1].hash, kind="run.pruned", payload=b"no document")]
ANCHOR = {"anchor_seq": 2, "anchor_hash": LOG[1].hash}
REWRITTEN = [*LOG[:2], link(3, LOG[1].hash, payload=b'{"by":"mallory"}'), *LOG[3:]]


@pytest.mark.parametrize(("links", "at"), [(LOG, head(LOG)), (ANCHORED, head(ANCHORED, **ANCHOR))])
def test_chain_that_is_whole_is_verified(links, at):
    found = checked(links, at)
    assert found.ok
    assert (found.events, found.head) == (len(links), at)


def test_what_is_written_meanwhile_is_not_asked_about():
    assert checked(LOG, head(LOG[:4])).ok


@pytest.mark.parametrize("field", ["at", "attempt", "kind", "node", "task_id", "call_id", "trace_id", "span_id"])
def test_event_of_which_anything_was_altered_is_the_first_that_breaks(field):
    other = {"at": AT.replace(microsecond=1), "attempt": 2, "call_id": RUN}.get(field, "other")
    found = checked([*LOG[:2], replace(LOG[2], **{field: other}), *LOG[3:]], head(LOG))
    assert (found.broken_at, found.events) == (3, 2)
    assert "event 3 is not what was hashed" in found.broken


ILLS = {
    "payload": ([replace(LOG[0], payload=b"{ }"), *LOG[1:]], head(LOG), 1, "event 1 is not what was hashed"),
    "altered_with_its_hash": (REWRITTEN, head(LOG), 4, "or event 3 was, together with its hash"),
    "one_missing": ([*LOG[:2], *LOG[3:]], head(LOG), 3, "event 3 is missing"),
    "several_missing": ([*LOG[:1], *LOG[4:]], head(LOG), 2, "event 2 is missing, and so are the others before 5"),
    "first_missing": (LOG[1:], head(LOG), 1, "event 1 is missing"),
    "tail_cut": (LOG[:4], head(LOG), 5, "event 5 is missing: the log ends before it, and its head stands at 6"),
    "everything_gone": ([], head(LOG), 1, "event 1 is missing"),
    "everything_gone_and_head_too": (
        [],
        Head(seq=0, hash=GENESIS, anchor_seq=0, anchor_hash=GENESIS, newest=None),
        1,
        "event 1 is missing",
    ),
    "head_moved_back": (LOG, head(LOG[:4], newest=6), 5, "event 5 stands after the head"),
    "head_with_another_hash": (LOG, head(LOG, hash=GENESIS), None, "the hash of the head is not that of event 6"),
    "inserted_before_the_anchor": ([LOG[1], *ANCHORED], head(ANCHORED, **ANCHOR), 2, "event 2 was put in"),
    "inserted_at_zero": ([link(0, GENESIS), *LOG], head(LOG), 0, "event 0 was put in: the log begins at 1"),
    "anchor_hash_altered": (
        ANCHORED,
        head(ANCHORED, anchor_seq=2, anchor_hash=GENESIS),
        3,
        "does not follow from the anchor at 2",
    ),
    "anchor_moved_on": (ANCHORED[1:], head(ANCHORED, anchor_seq=3, anchor_hash=LOG[1].hash), 4, "the anchor"),
    "pruned_without_an_anchor": (ANCHORED, head(ANCHORED), 1, "event 1 is missing"),
    "anchored_and_never_pruned": (REST, head(REST, **ANCHOR), 1, "event 1 is missing, and so are the others up to 2"),
    "pruned_only_so_far": (MISCOUNTED, head(MISCOUNTED, **ANCHOR), 1, "no event says that they were pruned"),
    "pruned_in_other_words": (UNREADABLE, head(UNREADABLE, **ANCHOR), 1, "no event says that they were pruned"),
    "anchored_at_the_head": (
        [],
        head(LOG, anchor_seq=6, anchor_hash=LOG[5].hash),
        1,
        "event 1 is missing, and so are the others up to 6",
    ),
    "anchored_beyond_the_head": (
        [],
        head(LOG, anchor_seq=9, anchor_hash=LOG[5].hash),
        None,
        "the log is anchored at 9, and its head stands at 6",
    ),
}


@pytest.mark.parametrize("ill", ILLS.values(), ids=ILLS)
def test_first_event_that_is_altered_missing_or_put_in_is_named(ill):
    links, at, seq, words = ill
    found = checked(links, at)
    assert not found.ok
    assert found.broken_at == seq
    assert words in found.broken


def test_null_is_not_the_empty_text():
    assert link(1, GENESIS, node=None).hash != link(1, GENESIS, node="").hash


def test_no_field_can_take_over_a_part_of_its_neighbour():
    assert link(1, GENESIS, node="ab", task_id="c").hash != link(1, GENESIS, node="a", task_id="bc").hash


def test_hash_is_the_one_that_was_written_down():
    """Another implementation must come to the same; it is also what databases hold from version 4 of the schema on."""
    whole = {"node": "entwürfe", "task_id": "", "call_id": RUN, "trace_id": "a" * 32, "payload": b'{"n":1}'}
    assert link(7, GENESIS, **whole).hash.hex() == "eddbf4c2e21107693fe6c0a709512d4ade16ab3bc476d767857f03134bfe1301"
