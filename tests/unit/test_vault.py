"""The vault: what is sealed opens at its place alone, and nothing shows a key."""

from collections.abc import Iterator

import pytest
from fix_database import encrypting
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoints.sealed_rows import SealedRows
from holdfast.checkpoints.vault import KEY_BYTES, Keyring, Vault, joined
from holdfast.contracts.errors import ConfigurationError, InvalidRequest, KeyMissing, SealBroken
from holdfast.runtime.entropy import unguessable

KEYS = {"old": b"o" * KEY_BYTES, "new": b"n" * KEY_BYTES}
NAMES = b"names".ljust(KEY_BYTES)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
places = st.lists(words, min_size=1, max_size=5).map(tuple)


def vault(seals_with: str = "new", keys: dict[str, bytes] = KEYS) -> Vault:
    return Vault(Keyring(keys, seals_with=seals_with), NAMES, unguessable)


@given(words, places, st.binary(min_size=1, max_size=300))
def test_what_is_sealed_opens_at_its_place(tenant, place, value):
    sealed = vault().seal(tenant, place, value)
    assert vault("old").open(tenant, place, sealed, key_id="new") == value
    assert value not in sealed or len(value) < 4


@given(words, places, words, places)
def test_it_opens_nowhere_else(tenant, place, other_tenant, other_place):
    sealed = vault().seal(tenant, place, b"value")
    if (tenant, place) == (other_tenant, other_place):
        return
    with pytest.raises(SealBroken):
        vault().open(other_tenant, other_place, sealed, key_id="new")


@given(st.data())
def test_no_bit_of_it_can_be_changed(data):
    sealed = bytearray(vault().seal("acme", ("t",), b"a value of some length"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealBroken):
        vault().open("acme", ("t",), bytes(sealed), key_id="new")


@pytest.mark.parametrize("length", [0, 5, 12, 20, 28])
def test_it_cannot_be_cut_short(length):
    sealed = vault().seal("acme", ("t",), b"a value of some length")
    with pytest.raises(SealBroken):
        vault().open("acme", ("t",), sealed[:length], key_id="new")


def test_it_does_not_open_under_the_id_of_another_key():
    sealed = vault("old").seal("acme", ("t",), b"value")
    with pytest.raises(SealBroken, match="'new'"):
        vault().open("acme", ("t",), sealed, key_id="new")


def test_a_key_that_is_not_there_is_named_and_none_is_shown():
    sealed = vault("old").seal("acme", ("t",), b"value")
    with pytest.raises(KeyMissing, match="'old', and this process has 'new'") as refused:
        vault(keys={"new": KEYS["new"]}).open("acme", ("t",), sealed, key_id="old")
    assert refused.value.facts == {"key_id": "old"}


def test_equal_values_are_sealed_differently_each_time():
    here = vault()
    assert len({here.seal("acme", ("t",), b"yes") for _ in range(50)}) == 50


@given(st.lists(words, max_size=4), st.lists(words, max_size=4))
def test_different_words_are_never_joined_to_the_same(some, others):
    assert (joined(*some) == joined(*others)) == (some == others)


def test_a_pseudonym_is_the_same_whichever_key_seals_and_differs_by_tenant_and_thread():
    assert vault("old").pseudonym("acme", "channel", "t1", "notes") == vault().pseudonym(
        "acme", "channel", "t1", "notes"
    )
    others = [("bolt", "channel", "t1", "notes"), ("acme", "channel", "t2", "notes"), ("acme", "run", "t1", "notes")]
    assert vault().pseudonym("acme", "channel", "t1", "notes") not in {vault().pseudonym(*words) for words in others}


def test_nothing_shows_a_key():
    here = encrypting("old", "new")
    shown = f"{here!r} {here.keyring!r} {here.keyring} {Vault(here.keyring, NAMES, unguessable)!r}"
    assert "old" in shown
    assert "new" in shown
    assert "....." not in shown
    assert "names  " not in shown


@pytest.mark.parametrize(
    ("keys", "seals_with", "complaint"),
    [
        ({"a": b"short"}, "a", "'a' has 5 bytes and must have 32"),
        ({"a b": b"x" * 32}, "a b", "'a b' cannot be the id of a key"),
        ({"a:b": b"x" * 32}, "a:b", "cannot be the id of a key"),
        ({"a": b"x" * 32}, "b", "no encryption key 'b' to write with; the keys are a"),
    ],
)
def test_keys_that_are_none_are_refused(keys, seals_with, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        Keyring(keys, seals_with=seals_with)
    assert "short" not in refused.value.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(words, json_values, max_size=4)


def as_read(shown, marks, blobs=(), writes=()):
    return {"thread_id": "t", "checkpoint_ns": "n:1", "checkpoint_id": "c", "checkpoint": shown, "metadata": marks,
            "channel_values": list(blobs), "pending_writes": list(writes)}  # fmt: skip


@given(documents, documents, st.dictionaries(words, st.tuples(words, st.binary(max_size=20)), max_size=3))
def test_a_checkpoints_rows_come_back_as_they_were(inline, metadata, apart):
    rows, where = SealedRows(vault(), "acme"), ("t", "n:1")
    versions = {name: f"{n}.5" for n, name in enumerate(sorted({*inline, *apart}))}
    checkpoint = {"v": 4, "id": "c", "channel_values": inline, "channel_versions": versions}
    shown, marks = rows.documents((*where, "c"), checkpoint, metadata, apart=apart)
    blobs = [encoded(rows.blob(where, name, versions[name], typed)) for name, typed in apart.items()]
    writes = [
        (b"task", *encoded(rows.write((*where, "c"), ("task", n, "~p"), name, typed)), b"~p", str(n).encode())
        for n, (name, typed) in enumerate(apart.items())
    ]
    read = SealedRows(vault("old"), "acme").opened(as_read(shown, marks, blobs, writes))
    assert read["checkpoint"] == checkpoint
    assert read["metadata"] == metadata
    assert {name.decode(): (kind.decode(), blob) for name, kind, blob in read["channel_values"]} == apart
    assert [(name.decode(), (kind.decode(), blob)) for _, name, kind, blob, _, _ in read["pending_writes"]] == list(
        apart.items()
    )


@given(words.map("Geheim\u00fc{}".format), documents)
def test_no_name_and_no_value_is_left_in_what_is_stored(secret, metadata):
    rows = SealedRows(vault(), "acme")
    inline = {secret: secret, "nested": {secret: [secret]}}
    checkpoint = {"v": 4, "id": "c", "channel_values": inline, "channel_versions": {secret: "1", "nested": "2"}}
    shown, marks = rows.documents(("t", "", "c"), checkpoint, {**metadata, secret: secret, "run_id": secret}, apart=())
    stored = repr((shown, marks, rows.blob(("t", ""), secret, "1", ("msgpack", secret.encode()))))
    assert secret not in stored
    assert "msgpack" not in stored


def test_a_channel_whose_name_is_no_text_is_refused():
    with pytest.raises(InvalidRequest, match="cannot be the name of a channel"):
        SealedRows(vault(), "acme").blob(("t", ""), "\ud800", "1", ("null", b""))


def encoded(fields: tuple[str, str, bytes]) -> Iterator[bytes]:
    return (field.encode() if isinstance(field, str) else field for field in fields)
