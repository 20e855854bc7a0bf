from decimal import Decimal

import pytest

from holdfast.gateway.prices import Prices


def test_a_listed_model_is_priced_exactly_from_the_shipped_list():
    quote = Prices().quote("openai", "gpt-4o-mini", 1_000_000, 1_000_000)

    assert quote.source == "genai-prices"
    assert quote.cost_usd == Decimal("0.75")


def test_a_dated_name_of_a_listed_model_has_its_price():
    prices = Prices()

    assert prices.quote("openai", "gpt-4o-mini-2024-07-18", 1000, 10) == prices.quote("openai", "gpt-4o-mini", 1000, 10)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "a-model-of-our-own"),
        ("ollama", "llama3"),
        ("openai", "whisper-1"),  # listed by the hour of audio, so nothing is said of its tokens
    ],
)
def test_a_model_without_a_listed_price_per_token_is_unknown_and_never_free(provider, model):
    quote = Prices().quote(provider, model, 1000, 1000)

    assert quote.cost_usd is None
    assert quote.source == "unknown"


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("google_genai", "gemini-2.5-flash"),
        ("mistralai", "mistral-small-latest"),
        ("xai", "grok-3"),
        ("azure_openai", "gpt-4o"),
        ("bedrock_converse", "anthropic.claude-3-5-sonnet-20240620-v1:0"),
    ],
)
def test_langchains_name_of_a_provider_finds_its_list(provider, model):
    assert Prices().quote(provider, model, 1000, 1000).cost_usd


def test_a_configured_price_goes_before_the_list_and_before_free():
    pair = (Decimal("2.50"), Decimal(10))
    prices = Prices({"openai:gpt-4o-mini": pair, "scripted:house:answer": pair})

    for provider, model in (("openai", "gpt-4o-mini"), ("scripted", "house:answer")):
        quote = prices.quote(provider, model, 3, 7)
        assert (quote.cost_usd, quote.source) == (Decimal("0.0000775"), "configured")


def test_a_scripted_model_is_free():
    quote = Prices().quote("scripted", "house:answer", 1000, 1000)

    assert (quote.cost_usd, quote.source) == (Decimal(0), "free")
