"""Speed as ratios against a peer or a bare loop, measured in the same run. Never asserted."""
