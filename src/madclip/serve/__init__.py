"""The page for people who do not program, and the REST API: thin over `detector`, `evaluation`, `export`, `report`."""
