"""The outside world: one door for model calls, one for tool calls. Knows nothing of LangGraph."""
