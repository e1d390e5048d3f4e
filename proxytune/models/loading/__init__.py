"""From the description of a family to its loaded members: checks, files, memory, adapters."""
