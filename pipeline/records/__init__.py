"""The hand-offs between stages: frozen records, each with a schema_version, and the paths they live at."""
