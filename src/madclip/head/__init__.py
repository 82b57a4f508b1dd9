"""What is learned: adapters, prompts, scoring, losses."""
