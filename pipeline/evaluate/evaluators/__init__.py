"""Pictures of a network, stored as arrays for the report to draw."""
