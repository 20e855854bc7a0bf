"""holdfast runs LangGraph agents in production."""
