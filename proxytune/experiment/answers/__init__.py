"""Answers of all arms: their keys, the store on disk, and what one task shares."""
