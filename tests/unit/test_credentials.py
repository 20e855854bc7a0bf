"""What has the shape of a credential is masked, and what has not is left alone."""

import pytest

from holdfast.contracts.credentials import masked
from holdfast.contracts.errors import AuthError

KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz012345"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"Incorrect API key provided: {KEY}.", "Incorrect API key provided: ***."),
        ("403 for url 'https://host/v1?key=abc123&q=1'", "403 for url 'https://host/v1?key=***&q=1'"),
        ("https://host/v1?q=1&access_token=abc.def", "https://host/v1?q=1&access_token=***"),
        ("postgresql://app:hunter2@db/prod refused", "postgresql://app:***@db/prod refused"),
        (f"headers: {{'authorization': 'Bearer {TOKEN}'}}", "headers: {'authorization': 'Bearer ***'}"),
        (f"the token {TOKEN} has expired", "the token *** has expired"),
    ],
)
def test_a_credential_is_masked_where_it_stands(said: str, shown: str):
    assert masked(said) == shown


@pytest.mark.parametrize(
    "said",
    [
        "order A-1 is unknown; the key of the map is 'order'",
        "https://host/orders?order=A-1&keyboard=de",
        "a risk-assessment-of-the-whole-portfolio was asked for",
        "task-0198c0de-0000-7000-8000-000000000000 failed",
    ],
)
def test_everything_else_is_left_alone(said: str):
    assert masked(said) == said


def test_an_error_masks_its_message_and_its_facts():
    error = AuthError(f"refused: {KEY}", tried=[f"Bearer {KEY}"], request={"url": "https://host?token=abc"})
    assert (error.message, str(error)) == ("refused: ***",) * 2
    assert error.facts == {"tried": ["Bearer ***"], "request": {"url": "https://host?token=***"}}
