"""The local end of a lease: when the worker lets go by its own clock, and that it does so for good."""

import asyncio
import math
from types import SimpleNamespace

import pytest

from holdfast.contracts.errors import ConfigurationError, StoreUnavailable
from holdfast.contracts.ports import Renewal
from holdfast.runtime import heart, leases
from holdfast.runtime.heart import Heart
from holdfast.runtime.leases import Hold, LeaseTerms


class Turned:
    """A boot clock that is turned by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Turned:
    turned = Turned()
    for module in (leases, heart):
        monkeypatch.setattr(module, "boot_seconds", turned)
    return turned


def hold(ends_at: float, run_id: str = "run") -> Hold:
    run = SimpleNamespace(cancel_requested=False)
    return Hold(SimpleNamespace(run=run, run_id=run_id, owner=run_id), ends_at)


class Answers:
    """A heartbeat that is told what to answer."""

    def __init__(self) -> None:
        self.renewed: list[list[str]] = []
        self.answer: Renewal | Exception = Renewal(held=True)
        self.closed = False

    async def renew(self, worker_id, owners, *, ttl_seconds):
        self.renewed.append(list(owners))
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict.fromkeys(owners, self.answer)

    async def close(self):
        self.closed = True


@pytest.mark.parametrize("ttl", [1.0, 2.0, 15.0, 600.0])
def test_terms_leave_room_for_beats_and_a_margin(ttl: float):
    terms = LeaseTerms(ttl_seconds=ttl)
    assert 3 * terms.beat_seconds <= terms.usable_seconds < ttl, "three beats can be lost before the worker lets go"
    assert terms.tick_seconds < terms.margin_seconds, "what is lost is stopped before the database lets another in"
    assert terms.tick_seconds < terms.stall_seconds


@pytest.mark.parametrize(
    ("terms", "which", "what_to_do"),
    [
        ({"ttl_seconds": 0.0}, "lease_ttl_seconds must be above 0", ""),
        ({"ttl_seconds": math.inf}, "lease_ttl_seconds must be above 0 and finite", ""),
        ({"margin": 15.0}, "margin_seconds is 15, and lease_ttl_seconds 15", "Set a margin between 0 and the lease"),
        ({"margin": 0.0}, "margin_seconds is 0", "Set a margin between 0 and the lease"),
        ({"beat": 15.0}, "beat_seconds is 15", "Set at most 6, or a longer lease"),
        ({"beat": 6.1}, "beat_seconds is 6.1", "Set at most 6, or a longer lease"),
        ({"margin": 10.0, "beat": 3.0}, "counts on a lease for 5 s", "Set at most 2.5, or a longer lease"),
    ],
)
def test_terms_that_contradict_the_lease_are_refused(terms: dict[str, float], which: str, what_to_do: str):
    with pytest.raises(ConfigurationError, match=which) as refused:
        LeaseTerms(**terms)
    assert what_to_do in refused.value.message


@pytest.mark.parametrize("margin", [0.1, 10.0, 14.0])
def test_what_is_left_out_follows_from_the_margin_too(margin: float):
    terms = LeaseTerms(margin=margin)
    assert 4 * terms.beat_seconds <= terms.usable_seconds == 15 - margin
    assert terms.tick_seconds < terms.margin_seconds


def test_hold_ends_by_its_own_clock_and_no_late_answer_brings_it_back(clock: Turned):
    held = hold(clock.at + 10)
    assert (held.still_ours(), held.seconds_left()) == (True, 10)
    held.prolong(clock.at + 20)
    held.prolong(clock.at + 15)
    assert held.seconds_left() == 20, "an older answer makes it no shorter"
    clock.at += 20
    assert not held.still_ours()
    held.prolong(clock.at + 100)
    assert (held.still_ours(), held.seconds_left(), held.ended) == (False, 0, True)


def test_hold_that_nobody_saw_end_is_still_the_databases_to_prolong(clock: Turned):
    held = hold(clock.at + 1)
    clock.at += 2
    held.prolong(clock.at + 10)
    assert held.still_ours()


async def beaten(heart: Heart, act) -> int:
    """What came of `act` while the heart was alive: how often it told the loop that there was news."""
    told = []
    living = asyncio.create_task(heart.live(news=lambda: told.append(1)))
    async with asyncio.timeout(20):
        await act()
    living.cancel()
    await asyncio.wait([living])
    return len(told)


async def test_beat_prolongs_from_when_it_was_sent_and_a_refusal_ends_the_hold(clock: Turned):
    answers, terms = Answers(), LeaseTerms(ttl_seconds=15)
    beating, held = Heart(answers, "worker", terms), hold(clock.at + 1)

    async def act() -> None:
        beating.keep(held)
        await beating.beat()
        assert held.seconds_left() == terms.usable_seconds
        answers.answer = StoreUnavailable("nobody answers")
        clock.at += 5
        await beating.beat()
        assert held.seconds_left() == terms.usable_seconds - 5, "nobody answered: its own clock decides"
        answers.answer = Renewal(held=True, cancel_requested=True)
        await beating.beat()
        assert held.cancel_requested
        assert held.still_ours()
        answers.answer = Renewal(held=False)
        await beating.beat()
        assert not held.still_ours()
        beats = len(answers.renewed)
        await beating.beat()
        assert len(answers.renewed) == beats, "what has ended is not asked for any more"

    assert await beaten(beating, act) == 2, "the loop is told of the wish and of the loss"
    assert answers.closed


async def test_heart_stops_prolonging_for_a_loop_that_does_not_tick_and_goes_on_when_it_does(clock: Turned):
    answers, terms = Answers(), LeaseTerms(ttl_seconds=15)
    beating = Heart(answers, "worker", terms)

    async def act() -> None:
        beating.keep(hold(clock.at + 100))
        await beating.beat()
        beats = len(answers.renewed)
        clock.at += terms.stall_seconds + 0.1
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(beating._beat(), beating._loop))
        assert len(answers.renewed) == beats
        beating.tick()
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(beating._beat(), beating._loop))
        assert len(answers.renewed) == beats + 1

    await beaten(beating, act)


async def test_what_ends_the_thread_is_told_to_who_owns_it():
    class Broken(Answers):
        async def close(self):
            raise AssertionError("a defect")

    beating = Heart(Broken(), "worker", LeaseTerms())
    living = asyncio.create_task(beating.live(news=lambda: None))
    await beating.beat()
    beating._stopping = True
    beating.hurry()
    with pytest.raises(AssertionError, match="a defect"):
        await living
