"""Read, check, split and de-duplicate: prompts, demonstrations, preferences."""
