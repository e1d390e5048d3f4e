"""A base behind an OpenAI-compatible endpoint, of which only the likeliest tokens are known at each step."""
