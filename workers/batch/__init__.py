"""Many prompts, answered by one version while nobody waits: `python -m workers.batch SPEC.json`."""
