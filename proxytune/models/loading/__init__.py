"""From where a family's members come from to loaded modules: checks, files, memory, adapters."""
