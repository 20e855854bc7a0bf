"""The proxy itself: each fault is the one that it says, and ends with `start`."""

import re

import psycopg
import pytest
from fix_database import DatabaseUrls
from fix_proxy import Proxy


def connect(url: str, name: str = "client", **more: object) -> psycopg.Connection:
    return psycopg.connect(
        url, autocommit=True, application_name=name, connect_timeout=2, tcp_user_timeout=1000, **more
    )


def answer(conn: psycopg.Connection) -> int:
    return conn.execute("select 1").fetchone()[0]


def test_bytes_pass_as_they_are(proxy: Proxy):
    with connect(proxy.url) as conn:
        text = "x" * 1_000_000
        assert conn.execute("select %s::text", [text]).fetchone() == (text,)
        assert proxy.connections == 1


def test_stopped_it_resets_and_refuses_and_started_again_it_serves(proxy: Proxy):
    with connect(proxy.url) as conn:
        proxy.stop()
        with pytest.raises(psycopg.OperationalError):
            answer(conn)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(proxy.url)
    proxy.start()
    with connect(proxy.url) as conn:
        assert answer(conn) == 1


def test_cut_ends_what_is_there_and_serves_what_comes(proxy: Proxy):
    with connect(proxy.url, "heart") as heart, connect(proxy.url, "hand") as hand:
        proxy.cut(of=b"heart")
        with pytest.raises(psycopg.OperationalError):
            answer(heart)
        assert answer(hand) == 1
    with connect(proxy.url, "heart") as heart:
        assert answer(heart) == 1


def test_deaf_it_accepts_and_never_answers(proxy: Proxy):
    with connect(proxy.url, "heart") as heart, connect(proxy.url, "hand") as hand:
        proxy.deaf(to=b"heart")
        assert answer(hand) == 1
        heart.pgconn.send_query(b"select 1")
        heart.pgconn.flush()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            connect(proxy.url, "heart")
        assert not heart.pgconn.notifies()
        assert heart.pgconn.is_busy()
        proxy.start()
        with pytest.raises(psycopg.OperationalError):
            heart.wait(psycopg.generators.fetch_many(heart.pgconn))
    with connect(proxy.url, "heart") as heart:
        assert answer(heart) == 1


@pytest.mark.parametrize("cut", [True, False], ids=["and reset", "and deaf from then on"])
def test_commit_whose_answer_is_lost_has_been_made(proxy: Proxy, database_urls: DatabaseUrls, cut: bool):
    with connect(database_urls.admin) as admin, connect(proxy.url) as conn:
        admin.execute("create table made (number integer)")
        admin.execute("grant all on made to public")
        loss = proxy.lose_answer(b"COMMIT", cut=cut)
        conn.execute("begin")
        conn.execute("insert into made values (1)")
        conn.pgconn.send_query(b"COMMIT")
        conn.pgconn.flush()
        while not proxy.answers_lost:  # the server has answered, so it has committed
            pass
        assert loss.lost == [b"COMMIT"]
        assert admin.execute("select number from made").fetchall() == [(1,)]
        assert conn.pgconn.is_busy()
        with connect(proxy.url) as another:
            assert another.execute("select number from made").fetchall() == [(1,)]
        proxy.start()
        with pytest.raises(psycopg.OperationalError):
            conn.wait(psycopg.generators.fetch_many(conn.pgconn))


def test_slow_link_delivers_everything_late(proxy: Proxy):
    with connect(proxy.url) as conn:
        proxy.slow(0.1)
        before = conn.execute("select clock_timestamp()").fetchone()[0]
        after = conn.execute("select clock_timestamp()").fetchone()[0]
        assert (after - before).total_seconds() >= 0.2


def test_answer_is_lost_of_what_is_sent_after_the_order_and_of_nothing_before(proxy: Proxy):
    with connect(proxy.url) as conn:
        assert conn.execute("select 7").fetchone() == (7,)
        loss = proxy.lose_answer(re.compile(rb"select [78]"), cut=True)
        assert answer(conn) == 1
        assert loss.lost == []
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 8")
        assert loss.lost == [b"select 8"]
