"""Whether a run's events are the ones that were written: each must follow from the one before it, up to the head."""

import json

from holdfast.contracts.chain import Head, Link, Verification, chained
from holdfast.contracts.events import EventKind
from holdfast.contracts.ids import RunId


class ChainCheck:
    """Follows one run's chain from its anchor on, event by event, up to `head`, and no further: what is written
    meanwhile is not asked about."""

    def __init__(self, run_id: RunId, head: Head) -> None:
        self._run_id = run_id
        self._head = head
        self._seq = head.anchor_seq
        self._hash = head.anchor_hash
        self._told = head.anchor_seq == 0
        """Whether what is before the anchor was pruned, as an event after it says."""
        self._broken: tuple[int | None, str] | None = None

    def follow(self, link: Link) -> bool:
        """Take the next event in order of their numbers. Returns whether there is reason to go on."""
        due = self._seq + 1
        if self._broken is not None or due > self._head.seq:
            return False
        if link.seq < due:
            return self._break(link.seq, f"was put in: the log begins at {due}")
        if link.seq > due:
            others = f", and so are the others before {link.seq}" if link.seq > due + 1 else ""
            return self._break(due, f"is missing{others}")
        if link.hash != chained(self._hash, self._run_id, link):
            return self._break(due, self._why_not(due))
        self._seq, self._hash = link.seq, link.hash
        self._told = self._told or _pruned_up_to(link) == self._head.anchor_seq
        return True

    def verdict(self) -> Verification:
        """How it stands, when there are no more events, or `follow` wants none."""
        at, what = self._broken or self._amiss_at_the_end() or (None, None)
        return Verification(
            run_id=self._run_id,
            events=self._seq - self._head.anchor_seq,
            head=self._head,
            broken_at=at,
            broken=what if at is None else f"event {at} {what}",
        )

    def _amiss_at_the_end(self) -> tuple[int | None, str] | None:
        """What is wrong, if anything, though each event that was seen follows from the one before it."""
        head = self._head
        if head.seq == 0:
            return 1, "is missing: the log of every run begins with its admission"
        if self._seq > head.seq:
            return None, f"the log is anchored at {head.anchor_seq}, and its head stands at {head.seq}"
        if self._seq < head.seq:
            return self._seq + 1, f"is missing: the log ends before it, and its head stands at {head.seq}"
        if self._hash != head.hash:
            return None, f"the hash of the head is not that of event {head.seq}, which follows from those before it"
        if head.newest is not None and head.newest > head.seq:
            return head.seq + 1, f"stands after the head, which is at {head.seq}: it was put in, or the head moved"
        if not self._told:
            others = f", and so are the others up to {head.anchor_seq}" if head.anchor_seq > 1 else ""
            return 1, f"is missing{others}: the log is anchored there, and no event says that they were pruned"
        return None

    def _break(self, seq: int | None, what: str) -> bool:
        self._broken = (seq, what)
        return False

    def _why_not(self, seq: int) -> str:
        if self._seq > self._head.anchor_seq:
            return f"is not what was hashed: it was altered or put in, or event {self._seq} was, together with its hash"
        if self._seq:
            return f"does not follow from the anchor at {self._seq}: it was altered or put in, or the anchor was"
        return "is not what was hashed: it was altered or put in"


def _pruned_up_to(link: Link) -> int | None:
    """The number of the last event that was taken out, where `link` is the event that says so."""
    if link.kind != EventKind.RUN_PRUNED:
        return None
    try:
        facts = json.loads(link.payload)
    except (ValueError, RecursionError):
        return None  # whoever chained it anew wrote no document
    return facts.get("events") if isinstance(facts, dict) else None
