"""A base behind an OpenAI-compatible endpoint that only returns the likeliest tokens at each step."""
