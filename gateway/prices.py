"""What a model call costs: the operator's own prices first, then the list that ships with genai-prices."""

from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from holdfast.contracts.models import PriceQuote

_PER = Decimal(1_000_000)

SCRIPTED = "scripted"
"""The provider of offline models, which cost nothing unless a price is configured for them."""

# LangChain's names of providers, where genai-prices has another. Unmapped names are looked up as they are.
_LISTED_AS = {
    "azure_ai": "azure",
    "azure_openai": "azure",
    "anthropic_bedrock": "aws",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "google_genai": "google",
    "google_vertexai": "google",
    "google_anthropic_vertex": "google",
    "mistralai": "mistral",
    "xai": "x-ai",
}


PricePair = tuple[Decimal, Decimal]
"""Dollars per million input tokens, and per million output tokens."""


class Prices:
    """A price list. It never reaches for the network: the snapshot in the installed package counts."""

    def __init__(self, configured: Mapping[str, PricePair] = MappingProxyType({})) -> None:
        """`configured` maps `"provider:model"` to its price and goes before the list."""
        self._configured = configured

    def quote(self, provider: str, model: str, input_tokens: int, output_tokens: int) -> PriceQuote:
        """The price of a call with so many tokens. A model that no list knows has no price: unknown is never zero."""
        if (price := self._configured.get(f"{provider}:{model}")) is not None:
            cost = (price[0] * input_tokens + price[1] * output_tokens) / _PER
            return PriceQuote(cost_usd=cost, source="configured")
        if provider == SCRIPTED:
            return PriceQuote(cost_usd=Decimal(0), source="free")
        return _listed(_LISTED_AS.get(provider, provider), model, input_tokens, output_tokens)


_UNKNOWN = PriceQuote(cost_usd=None, source="unknown")


def _listed(provider: str, model: str, input_tokens: int, output_tokens: int) -> PriceQuote:
    usage = PricedUsage(input_tokens=input_tokens, output_tokens=output_tokens)
    try:
        price = calc_price(usage, model, provider_id=provider)
    except LookupError:
        return _UNKNOWN
    if price.model_price.input_mtok is None and price.model_price.output_mtok is None:
        return _UNKNOWN  # priced by the hour or the page, or listed without a price: not free
    return PriceQuote(cost_usd=price.total_price, source="genai-prices")
